"""The `openai` engine over this project's own server: what a worker on another host works with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inference import Grammar, Message, Request, SamplingParams
from inference.engine import OpenAIConfig
from inference.errors import PromptTooLong, Unsupported
from inference.native.engine import NativeEngine
from inference.openai.engine import OpenAIEngine
from inference.requests import FinishReason
from tests.api.http.site import Site

CONFIG = OpenAIConfig(model="default", retries=0)


@pytest.fixture(scope="module")
def remote(served: Site) -> Iterator[OpenAIEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGWRIGHT_OPENAI_BASE_URL", f"{served.url}/v1")
        patch.setenv("RAGWRIGHT_OPENAI_API_KEY", served.alpha)
        engine = OpenAIEngine.from_config(CONFIG)
    yield engine
    engine.close()


def _request(**options: object) -> Request:
    sampling = SamplingParams(max_tokens=12, temperature=0.8, seed=3, top_k=40, min_p=0.01)
    given = {"messages": [Message("user", "the fox")], "sampling": sampling, **options}
    return Request(**given)  # type: ignore[arg-type]


def test_nothing_of_the_contract_is_missing(remote: OpenAIEngine) -> None:
    assert remote.capabilities == OpenAIConfig.provides
    assert remote.context_length == 512, "the server said so"


@pytest.mark.parametrize("grammar", [None, Grammar.regex("[a-z]{5}"), Grammar.ebnf('root ::= "x"')])
def test_it_answers_as_the_engine_behind_it(
    grammar: Grammar | None, remote: OpenAIEngine, engine: NativeEngine
) -> None:
    for options in ({}, {"messages": None, "prompt": "the fox"}, {"tenant": "one of ours"}):
        request = _request(grammar=grammar, logprobs=2, **options)
        (far,), (near,) = remote.generate([request]), engine.generate([request])
        assert (far.text, far.token_ids, far.finish_reason) == (
            near.text,
            near.token_ids,
            near.finish_reason,
        )
        assert [(one.id, one.logprob) for one in far.logprobs] == [
            (one.id, one.logprob) for one in near.logprobs
        ]
        assert far.usage.prompt_tokens == near.usage.prompt_tokens


def test_scores_and_counts_are_the_same(remote: OpenAIEngine, engine: NativeEngine) -> None:
    request = _request()
    assert remote.count_tokens(request) == engine.count_tokens(request)
    far, near = (one.score(request, [" jumps", " runs"]) for one in (remote, engine))
    for ours, theirs in zip(far, near, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_a_stop_string_is_told_from_the_models_end(
    remote: OpenAIEngine, engine: NativeEngine
) -> None:
    text = engine.generate([_request()])[0].text
    sampling = SamplingParams(
        max_tokens=12, temperature=0.8, seed=3, top_k=40, min_p=0.01, stop=(text[3:5], "zzz")
    )
    (output,) = remote.generate([_request(sampling=sampling)])
    assert output.finish_reason is FinishReason.STOP_STRING


def test_what_is_too_long_and_what_only_a_near_engine_does(remote: OpenAIEngine) -> None:
    with pytest.raises(PromptTooLong):
        remote.generate([_request(messages=[Message("user", "fox " * 600)])])
    with pytest.raises(Unsupported, match="adapters"):
        remote.generate([_request(adapters=("a",))])
