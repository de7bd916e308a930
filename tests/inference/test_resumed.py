"""Resuming inside a generation: cut anywhere, the answer is the one that was never cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference import Capability, FinishReason, Grammar, InferenceInputError, Output, Request
from inference.guidance import Context, ContextAware
from inference.kv import StreamingLLM
from inference.native.engine import NativeEngine
from inference.requests import SamplingParams
from inference.taps import Taps
from tests.inference.conftest import open_engine
from tests.inference.test_engine_adapters import save
from tests.inference.tiny import checkpoint

Tiny = Callable[..., NativeEngine]
PROMPT = "The quick brown fox"
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "yes"]}}, "required": ["a"]}


def params(**options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 14, "seed": 11, **options})


CASES: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": params()},
    "seeded": {"sampling": params(temperature=1.0, top_p=0.95)},
    "penalty": {"sampling": params(temperature=0.7, repetition_penalty=1.7, top_k=40)},
    "regex": {"sampling": params(), "grammar": Grammar.regex("[a-z]{3,9} [0-9]{2}")},
    "schema": {"sampling": params(temperature=1.0), "grammar": Grammar.json_schema(SCHEMA)},
    "guided": {
        "sampling": params(temperature=0.5),
        "guidance": ContextAware(Context(prompt="river " * 9), 0.8),
    },
    "logprobs": {"sampling": params(), "logprobs": 2},
}


def told(output: Output) -> tuple[object, ...]:
    return output.token_ids, output.text, output.finish_reason


def test_every_cut_goes_on_as_if_it_had_not_been(tiny: Tiny) -> None:
    engine = tiny()
    assert Capability.RESUME in engine.capabilities
    for name, options in CASES.items():
        whole_request = Request(prompt=PROMPT, **options)
        whole = engine.generate([whole_request])[0]
        assert len(whole.token_ids) > 4, name
        for cut in range(1, len(whole.token_ids)):
            again = Request(prompt=PROMPT, resumed=whole.token_ids[:cut], **options)
            output = engine.generate([again])[0]
            assert told(output) == told(whole), (name, cut)
            assert output.usage.completion_tokens == len(whole.token_ids) - cut
            assert output.stats.resumed_tokens == cut
            assert output.logprobs == () or len(output.logprobs) == len(whole.token_ids) - cut
            for mine, theirs in zip(output.logprobs, whole.logprobs[cut:], strict=True):
                assert (mine.id, mine.text) == (theirs.id, theirs.text)
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_stop_string_across_the_cut_is_found(tiny: Tiny, length: int) -> None:
    engine = tiny(endless=True, ascii_only=True)
    plain = engine.generate([Request(prompt=PROMPT, sampling=params(max_tokens=24))])[0]
    text = plain.text
    stops = {text[at : at + length] for at in range(4, len(text) - length)}
    assert len(stops) > 5
    for stop in sorted(stops):
        sampling = params(max_tokens=24, stop=(stop,))
        whole = engine.generate([Request(prompt=PROMPT, sampling=sampling)])[0]
        assert whole.finish_reason is FinishReason.STOP_STRING
        for cut in range(1, len(whole.token_ids) + 1):
            resumed = whole.token_ids[:cut]
            again = Request(prompt=PROMPT, sampling=sampling, resumed=resumed)
            assert told(engine.generate([again])[0]) == told(whole), (stop, cut)


def test_an_adapter_and_other_requests_beside_change_nothing(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    options = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}
    lora = save(model, tmp_path / "lora", 3, **options)
    engine = open_engine(model, adapters={"law": str(lora)}, prefix_cache_bytes=2**20)
    try:
        requests = [
            Request(
                prompt=f"{PROMPT} {n}", sampling=params(seed=n, temperature=0.8), adapters=names
            )
            for n, names in enumerate([(), ("law",)] * 4)
        ]
        whole = engine.generate(requests)
        cut = [
            replace(request, id=f"{request.id}/2", resumed=output.token_ids[: 1 + n])
            for n, (request, output) in enumerate(zip(requests, whole, strict=True))
        ]
        assert list(map(told, engine.generate(cut))) == list(map(told, whole))
    finally:
        engine.close()


@pytest.mark.parametrize("end", ["stop", "length", "stop_string", "beyond"])
def test_an_answer_that_had_ended_costs_no_forward(tiny: Tiny, end: str) -> None:
    engine = tiny(endless=True, ascii_only=True) if end != "stop" else tiny()
    sampling = params(max_tokens=9)
    if end == "stop":
        endings = (
            engine.generate([Request(prompt=f"{n}", sampling=params(max_tokens=200, seed=n))])[0]
            for n in range(40)
        )
        number, whole = next(
            (n, output)
            for n, output in enumerate(endings)
            if output.finish_reason is FinishReason.STOP
        )
        request = Request(prompt=f"{number}", sampling=params(max_tokens=200, seed=number))
    else:
        request = Request(prompt=PROMPT, sampling=sampling)
        whole = engine.generate([request])[0]
        if end == "stop_string":
            request = replace(request, sampling=params(max_tokens=9, stop=(whole.text[2:4],)))
            whole = engine.generate([request])[0]
    tokens = (*whole.token_ids, 5, 6) if end == "beyond" else whole.token_ids
    before = engine.totals.answers
    output = engine.generate([replace(request, id="again", resumed=tokens)])[0]
    assert told(output) == told(whole)
    after = engine.totals.answers
    assert output.stats.forwards == 0 == after.forwards - before.forwards
    assert after.completion_tokens == before.completion_tokens
    assert after.requests == before.requests + 1


def test_a_stream_brings_what_is_behind_the_resumed_tokens(tiny: Tiny) -> None:
    engine = tiny(endless=True, ascii_only=True)
    request = Request(prompt=PROMPT, sampling=params())
    whole = engine.generate([request])[0]

    async def read(resumed: tuple[int, ...]) -> tuple[str, tuple[int, ...], Output | None]:
        text, tokens, output = "", (), None
        async for chunk in engine.stream(replace(request, id=f"s{len(resumed)}", resumed=resumed)):
            text, tokens, output = text + chunk.text, tokens + chunk.token_ids, chunk.output
        return text, tokens, output

    for cut in range(len(whole.token_ids) + 1):
        text, tokens, output = asyncio.run(read(whole.token_ids[:cut]))
        assert output is not None and told(output) == told(whole)
        assert tokens == whole.token_ids[cut:]
        assert whole.text.endswith(text)


@pytest.mark.parametrize(
    "options",
    [{"kv": StreamingLLM(sinks=2, recent=6)}, {"skip_layers": (1, 2)}, {"taps": Taps(id)}],
)
def test_what_is_shrunk_or_watched_is_decoded_again_and_says_so(
    tiny: Tiny, options: dict[str, Any]
) -> None:
    engine = tiny()
    request = Request(prompt=PROMPT, sampling=params(temperature=0.8), **options)
    whole = engine.generate([request])[0]
    output = engine.generate([replace(request, id="2", resumed=whole.token_ids[:5])])[0]
    assert told(output) == told(whole)
    assert output.stats.resumed_tokens == 0 and "decoded again" in output.notes["resumed"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"resumed": (999,)}, "999 at position 0.*same model"),
        ({"resumed": (40, 40), "grammar": Grammar.regex("[0-9]+")}, "grammar refuses"),
        ({"resumed": (-1,)}, "token ids that it had produced"),
        ({"resumed": "abc"}, "token ids that it had produced"),
        ({"resumed": (1.5,)}, "token ids that it had produced"),
    ],
)
def test_tokens_that_cannot_have_been_produced_are_refused(
    tiny: Tiny, options: dict[str, Any], problem: str
) -> None:
    engine = tiny()
    with pytest.raises(InferenceInputError, match=problem):
        engine.generate([Request(prompt=PROMPT, **options)])
    assert engine.generate([Request(prompt=PROMPT, sampling=params())])[0].text
