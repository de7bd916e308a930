"""What the `openai` engine finds out about a server, on one that skips, refuses or twists it.

What works is tested on real servers in tests/conformance and tests/integration.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inference import Capability, Request
from inference.errors import GrammarInputError, ServerUnavailable
from inference.grammar import Grammar
from inference.openai.engine import OpenAIEngine
from tests.inference.misbehaving import Naughty, completes, fails


def test_a_parameter_that_is_only_skipped_is_not_offered(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.probes = completes('{"a": "b"}')
    assert not opened().capabilities & {Capability.GRAMMAR, Capability.LOGPROBS}
    assert {len(body.keys() & {"response_format", "logprobs"}) for body in server.probed} == {1}


@pytest.mark.parametrize("status", [400, 403, 404, 422, 500, 501])
def test_a_probe_that_is_refused_means_not_offered(
    status: int, server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.probes = fails(status)
    assert not opened(retries=0).capabilities & {Capability.GRAMMAR, Capability.LOGPROBS}


@pytest.mark.parametrize("status", [429, 503])
def test_a_probe_that_only_failed_is_no_answer(
    status: int, server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.probes = fails(status)
    with pytest.raises(ServerUnavailable, match=str(status)):
        opened(retries=0)


def test_an_answer_against_its_grammar_is_flagged(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.probes = completes('{"a": "q"}')
    engine, server.probes = opened(), None
    assert Capability.GRAMMAR in engine.capabilities
    grammar = Grammar.json_schema({"enum": ["half", "whole"]})
    for said, complete in (("half", False), ('"half"', True), (' "whole"\n', True), ('"ha', False)):
        piece = {"choices": [{"text": said, "finish_reason": "stop"}]}
        server.answers = [lambda handler, piece=piece: handler.pieces(piece)]  # type: ignore[misc]
        (output,) = engine.generate([Request(prompt="x", grammar=grammar)])
        assert output.text == said
        assert output.notes["grammar"] == {"kind": "json_schema", "complete": complete}
    server.answers = []
    with pytest.raises(GrammarInputError, match="cannot be compiled"):
        engine.generate([Request(prompt="x", grammar=Grammar.json_schema({"pattern": "[z-a]"}))])


def test_log_probabilities_in_a_wrong_form_are_an_error_of_the_server(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    said = {"tokens": ["x"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -0.5}]}
    server.probes = completes("x", logprobs=said)
    engine, server.probes = opened(api="completions"), None
    for wrong in (
        {"tokens": ["x"], "token_logprobs": [None]},
        {"tokens": ["x"]},
        {"content": [{}]},
    ):
        piece = {"choices": [{"text": "x", "logprobs": wrong}]}
        server.answers = [lambda handler, piece=piece: handler.pieces(piece)]  # type: ignore[misc]
        with pytest.raises(ServerUnavailable, match="something else than the OpenAI protocol"):
            engine.generate([Request(prompt="x", logprobs=1)])
