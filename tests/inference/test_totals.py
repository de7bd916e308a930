"""The engine's own count of what left it, held against the outputs it gave."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import pytest

from inference import FinishReason, Grammar, InferenceError, Output, Request
from inference.guidance import Context, ContextAware
from inference.kv import StreamingLLM
from inference.native.engine import NativeEngine
from inference.native.totals import Spent
from inference.requests import SamplingParams
from tests.inference.conftest import open_engine
from tests.inference.tiny import POISON, checkpoint

Tiny = Callable[..., NativeEngine]


def told(outputs: Iterable[Output]) -> Spent:
    """The sum over what the outputs say of themselves."""
    total = Spent()
    for output in outputs:
        used, stats = output.usage, output.stats
        total += Spent(
            used.model_calls,
            used.prompt_tokens,
            used.cached_tokens,
            used.completion_tokens,
            stats.resumed_tokens,
            stats.forwards,
            stats.peak_kv_bytes,
            stats.seconds,
            stats.idealized_seconds,
        )
    return total


def test_sums_over_outputs_are_the_totals_to_the_last_bit(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", endless=True, context=512, poison=math.nan)
    engine = open_engine(folder, prefix_cache_bytes=2**20, step_tokens=24)
    draw, lock = random.Random(5), threading.Lock()
    outputs: list[Output] = []

    def request(n: int) -> Request:
        options: dict[str, object] = {
            1: {"grammar": Grammar.regex("[a-z]{40}")},
            2: {"kv": StreamingLLM(sinks=2, recent=8)},
            3: {"guidance": ContextAware(Context(prompt="river " * 5), 0.5)},
            4: {"seconds": 0.02},
            5: {"resumed": (40, 41, 42)},
            6: {"seconds": 1e-9},
        }.get(n % 8, {})  # type: ignore[assignment]
        ids = [draw.randrange(4, 300) for _ in range(draw.randrange(1, 30))]
        if n % 8 == 7:
            ids.append(POISON)
        sampling = SamplingParams(max_tokens=draw.randrange(1, 60), temperature=0.9, seed=n)
        return Request(token_ids=ids * 2, sampling=sampling, **options)  # type: ignore[arg-type]

    def work(number: int, requests: list[Request]) -> None:
        async def leave_early(request: Request) -> None:
            async for chunk in engine.stream(request):
                if number % 2:
                    engine.abort(request.id)
                if chunk.output is not None:
                    outputs.append(chunk.output)

        found = engine.generate(requests)
        with lock:
            outputs.extend(found)
        asyncio.run(leave_early(Request(prompt="fox", sampling=SamplingParams(max_tokens=99))))

    pieces = [[request(n) for n in range(at, at + 8)] for at in range(0, 32, 8)]
    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(pieces)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    ends = {output.finish_reason for output in outputs}
    assert {FinishReason.FAILED, FinishReason.ABORTED, FinishReason.DEADLINE} < ends
    mine, totals = told(outputs), engine.totals
    for field in fields(Spent):
        assert getattr(mine, field.name) == getattr(totals.answers, field.name), field.name
    assert totals.answers.requests == 36 and totals.lost == Spent()
    assert totals.answers.resumed_tokens == 12


def test_scores_and_exports_have_doors_of_their_own(tiny: Tiny) -> None:
    engine = tiny("llama", 0)
    before = engine.totals
    engine.score(Request(token_ids=[7] * 20), [[5, 6, 7], [8]])
    engine.export_cache(Request(token_ids=[7] * 9))
    scores, readings = engine.totals.scores, engine.totals.readings
    assert scores.requests - before.scores.requests == 1
    assert scores.prompt_tokens - before.scores.prompt_tokens == 20 + 3 + 1
    assert scores.forwards > before.scores.forwards
    assert readings.requests - before.readings.requests == 1
    assert readings.prompt_tokens - before.readings.prompt_tokens == 9
    assert engine.totals.answers == before.answers


def test_what_a_failing_forward_takes_down_is_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(checkpoint(tmp_path / "model"))
    runner = engine._core().runner

    def broken(*_: object) -> None:
        raise InferenceError("the device was lost")

    try:
        monkeypatch.setattr(runner, "step", broken)
        with pytest.raises(InferenceError, match="device was lost"):
            engine.generate([Request(token_ids=[7] * 9)])
    finally:
        engine.close()
    assert engine.totals.lost.requests == 1 and engine.totals.answers == Spent()
