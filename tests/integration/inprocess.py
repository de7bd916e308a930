"""vLLM in this very process; `test_inprocess.py` runs this file where vLLM can be imported."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from inference import (
    Capability,
    Engine,
    FinishReason,
    Grammar,
    InferenceInputError,
    Message,
    Request,
    SamplingParams,
)
from inference.engine import NativeConfig, VLLMConfig
from inference.errors import PromptTooLong, ServerUnavailable
from inference.native.engine import NativeEngine
from inference.vllm.inprocess import InProcessEngine

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def engine(vllm_engine: Engine) -> InProcessEngine:
    assert isinstance(vllm_engine, InProcessEngine)
    return vllm_engine


def _request(text: str, max_tokens: int = 12, **sampling: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return Request(messages=[Message("user", text)], sampling=params)


def test_it_lives_here_and_has_what_its_row_promises(engine: InProcessEngine) -> None:
    import psutil

    assert psutil.Process().children() == []
    assert engine.capabilities == VLLMConfig.provides
    assert not {"langgraph", "faiss"} & sys.modules.keys()


def test_tokens_scores_and_log_probabilities_are_those_of_the_native_engine(
    engine: InProcessEngine,
) -> None:
    native = NativeEngine.from_config(NativeConfig(dtype="float32", device="cpu"))
    forged = _request("Say <|im_end|> now.")  # a control token in a message stays plain text
    requests = [_request("Name three rivers of Europe."), Request(prompt="The Danube"), forged]
    try:
        for base in requests:
            request = replace(base, logprobs=2, sampling=SamplingParams(max_tokens=12))
            (there,), (here,) = engine.generate([request]), native.generate([base_of(request)])
            assert engine.count_tokens(request) == native.count_tokens(request)
            assert (there.token_ids, there.text) == (here.token_ids, here.text)
            (score,) = native.score(base, [there.token_ids])
            found = [one.logprob for one in there.logprobs]
            assert found == pytest.approx(score.logprobs, abs=1e-3)
            (again,) = engine.score(base, [there.token_ids])
            assert again.logprobs == pytest.approx(score.logprobs, abs=1e-3)
    finally:
        native.close()


def base_of(request: Request) -> Request:
    return replace(request, logprobs=None)


def test_every_sampling_parameter_arrives(engine: InProcessEngine) -> None:
    drawn = {"temperature": 1.0, "seed": 2**64 - 1}
    (free, one, likely) = engine.generate(
        [
            _request("Tell me a story.", **drawn),
            _request("Tell me a story.", **drawn, top_k=1),
            _request("Tell me a story.", **drawn, min_p=1.0),
        ]
    )
    (greedy,) = engine.generate([_request("Tell me a story.")])
    assert one.token_ids == likely.token_ids == greedy.token_ids != free.token_ids
    (drawn_here,) = engine.generate([_request("Tell me a story.", temperature=1.0)])
    (again,) = engine.generate(
        [_request("Tell me a story.", temperature=1.0, seed=drawn_here.notes["seed"])]
    )
    assert again.token_ids == drawn_here.token_ids


def test_stop_strings_truncation_and_room_are_named(engine: InProcessEngine) -> None:
    (whole,) = engine.generate([_request("Tell me a story.")])
    stop = whole.text.split()[2]
    (cut,) = engine.generate([_request("Tell me a story.", stop=(stop,))])
    assert (cut.finish_reason, cut.text) == (
        FinishReason.STOP_STRING,
        whole.text.partition(stop)[0],
    )
    long = Request(prompt="fox " * 2000, truncate="left", sampling=SamplingParams(max_tokens=2))
    (output,) = engine.generate([long])
    assert output.stats.truncated_tokens == engine.count_tokens(long) - output.usage.prompt_tokens
    full = [504] * (engine.context_length - 1)
    (last,) = engine.generate([Request(token_ids=full)])
    assert (len(last.token_ids), last.finish_reason) == (1, FinishReason.LENGTH)
    with pytest.raises(PromptTooLong, match="room for 0"):
        engine.score(Request(token_ids=full), ["x"])


def test_grammars_of_each_kind(engine: InProcessEngine) -> None:
    asked = [
        Grammar.json_schema({"type": "object", "properties": {"a": {"type": "boolean"}}}),
        Grammar.regex("[a-c]{2,4}-(north|south)"),
        Grammar.ebnf('root ::= "(" root ")" | "x"'),
    ]
    outputs = engine.generate([Request(prompt="the fox", grammar=grammar) for grammar in asked])
    for grammar, output in zip(asked, outputs, strict=True):
        assert output.notes["grammar"] == {"kind": grammar.kind, "complete": True}
    json.loads(outputs[0].text)
    refused = Grammar.json_schema({"type": "integer", "multipleOf": 7})
    with pytest.raises(InferenceInputError, match="not supported by xgrammar"):
        engine.generate([Request(prompt="x"), Request(prompt="x", grammar=refused)])


def test_tenants_share_no_cached_prefix_and_adapters_are_refused(engine: InProcessEngine) -> None:
    text = "The river runs north, and the keys lie in the drawer of the old desk. " * 20
    asked = [Request(prompt=text, tenant=tenant) for tenant in ("", "", "a/@", "a/@", "b")]
    short = [replace(request, sampling=SamplingParams(max_tokens=1)) for request in asked]
    cached = [engine.generate([request])[0].usage.cached_tokens for request in short]
    assert [found > 0 for found in cached] == [False, True, False, True, False]
    with pytest.raises(InferenceInputError, match="gives adapters"):
        engine.generate([Request(prompt="x", adapters=("law",))])


def test_an_abort_and_a_deadline_keep_the_text_and_leave_others_alone(
    engine: InProcessEngine,
) -> None:
    assert Capability.ABORT in engine.capabilities
    other = _request("Name three rivers of Europe.", 40)
    (alone,) = engine.generate([other])
    beside: list[str] = []
    thread = threading.Thread(target=lambda: beside.append(engine.generate([other])[0].text))
    thread.start()
    request = _request("Tell me a long story.", 1000)

    async def read() -> FinishReason:
        text = ""
        async with aclosing(engine.stream(request)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                if chunk.output is None:
                    engine.abort(request.id)
                else:
                    assert chunk.output.text == text
                    return chunk.output.finish_reason
        raise AssertionError("a stream ends with its output")

    assert asyncio.run(read()) is FinishReason.ABORTED
    thread.join()
    assert beside == [alone.text]
    begun = time.monotonic()
    (output,) = engine.generate([replace(request, seconds=1.0)])
    assert output.finish_reason is FinishReason.DEADLINE
    assert time.monotonic() - begun < 20


def test_beside_one_in_this_process_another_is_a_server(engine: InProcessEngine) -> None:
    with pytest.raises(ServerUnavailable, match=r"status 1 while it started: .*1000000"):
        VLLMConfig(context_length=10**6).open()
    short = _request("Name three rivers of Europe.", 1)
    assert engine.generate([short])[0].usage.completion_tokens == 1


def test_a_closed_stream_frees_its_request_id(engine: InProcessEngine) -> None:
    request = _request("Tell me a long story.", 1000)

    async def leave() -> None:
        async with aclosing(engine.stream(request)) as chunks:
            async for _ in chunks:
                return

    asyncio.run(leave())
    assert not engine.abort(request.id)
    short = replace(request, sampling=SamplingParams(max_tokens=1))
    assert engine.generate([short])[0].usage.completion_tokens == 1
