"""Workflows as chat models: the last question in, the answer out, the rest beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.api.http.site import Site

ECHO = """
name: parrot
description: Says what it was asked, and how often.
inputs:
  question: {type: string}
  times: {type: integer, default: 1, minimum: 1}
  max_tokens: {type: integer, default: 5, minimum: 1}
resources:
  engine: {use: native, model: MODEL, dtype: float32, device: cpu}
nodes:
  say: {use: generate, with: {prompt: "${inputs.question}", max_tokens: "${inputs.max_tokens}"}}
edges:
  - {from: start, to: say}
  - {from: say, to: end}
outputs: {answer: "${state.text}", times: "${inputs.times}"}
"""


@pytest.fixture(scope="module")
def parrot(served: Site, model: Path) -> str:
    """A workflow that tenant alpha has uploaded, over the tiny model.

    An upload may not name a folder, so that it is put in where the file is kept.
    """
    file = served.service.library.add_workflow("alpha", "parrot", ECHO.replace("MODEL", "default"))
    file.write_text(ECHO.replace("MODEL", str(model)), encoding="utf-8")
    return "workflow/parrot"


def _ask(client: openai.OpenAI, model: str, *questions: str, **options: Any) -> Any:
    turns: list[Any] = [{"role": "user", "content": question} for question in questions]
    return client.chat.completions.create(model=model, messages=turns, **options)


def test_a_question_is_answered(client: openai.OpenAI, parrot: str) -> None:
    answer = _ask(client, parrot, "what?", extra_body={"ragwright": {"inputs": {"times": 3}}})
    told = answer.ragwright
    assert answer.choices[0].message.content == told["outputs"]["answer"] != ""
    assert answer.choices[0].finish_reason == "stop"
    assert told["status"] == "completed" and told["outputs"]["times"] == 3
    assert [step["node"] for step in told["steps"]] == ["say"]
    assert answer.usage.completion_tokens == told["usage"]["completion_tokens"] == 5
    assert answer.usage.prompt_tokens == told["usage"]["prompt_tokens"]
    assert told["unread_messages"] == 0


def test_a_stream_tells_the_steps_and_brings_the_answer(client: openai.OpenAI, parrot: str) -> None:
    whole = _ask(client, parrot, "what?", seed=4)
    chunks = list(_ask(client, parrot, "what?", seed=4, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    told = [chunk.model_extra["ragwright"] for chunk in chunks if chunk.model_extra]
    progress = [one["progress"] for one in told if "progress" in one]
    kinds = [one["type"] for one in progress]
    assert kinds[0] == "step_started" and kinds[-1] == "step_finished"
    assert "".join(one.get("text", "") for one in progress) == text
    assert told[-1]["status"] == "completed"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_only_the_last_question_is_read_and_that_is_said(
    client: openai.OpenAI, parrot: str
) -> None:
    answer = _ask(client, parrot, "first?", "second?")
    assert answer.ragwright["unread_messages"] == 1


def test_parameters_that_are_inputs_become_them(client: openai.OpenAI, parrot: str) -> None:
    assert _ask(client, parrot, "x", max_tokens=2).usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"ragwright": {"kv": "full"}}}, "ragwright.kv"),
        ({"seed": 1, "extra_body": {"ragwright": {"seed": 1}}}, "seed"),
    ],
)
def test_what_its_file_decides_is_refused_by_name(
    options: dict[str, Any], param: str, client: openai.OpenAI, parrot: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        _ask(client, parrot, "x", **options)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "extras",
    [
        {"inputs": {"unheard_of": 1}},
        {"inputs": {"times": 0}},
        {"inputs": {"times": "three"}},
    ],
)
def test_bad_inputs_are_the_callers_error(
    extras: dict[str, Any], client: openai.OpenAI, parrot: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="input"):
        _ask(client, parrot, "x", extra_body={"ragwright": extras})


def test_another_tenant_does_not_know_it(served: Site, parrot: str) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.beta) as other:
        assert parrot not in {model.id for model in other.models.list()}
        for name in (parrot, "workflow/unheard_of", "workflow/../../etc/passwd"):
            with pytest.raises(openai.NotFoundError):
                _ask(other, name, "x")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.alpha) as own:
        assert parrot in {model.id for model in own.models.list()}


def test_a_workflow_that_searches_needs_an_index(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="index"):
        _ask(client, "workflow/naive_rag", "x")
    with pytest.raises(openai.NotFoundError):
        _ask(client, "workflow/naive_rag", "x", extra_body={"ragwright": {"index": "nowhere"}})
