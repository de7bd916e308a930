"""Streaming: chunks add up to the output, closing aborts, errors reach the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from inference import Chunk, FinishReason, Request, SamplingParams
from inference.errors import PromptTooLong
from inference.native.engine import NativeEngine

Tiny = Callable[..., NativeEngine]


async def collect(engine: NativeEngine, request: Request) -> list[Chunk]:
    return [chunk async for chunk in engine.stream(request)]


@pytest.mark.parametrize("seed", range(5))
def test_chunks_add_up(tiny: Tiny, seed: int) -> None:
    engine = tiny("llama", endless=True)
    params = SamplingParams(max_tokens=60, temperature=1.5, seed=seed, stop=("ver", "🙂"))
    request = Request(prompt="東京", sampling=params)
    chunks = asyncio.run(collect(engine, request))
    output = chunks[-1].output
    assert output is not None and all(c.output is None for c in chunks[:-1])
    assert "".join(c.text for c in chunks) == output.text
    assert tuple(i for c in chunks for i in c.token_ids) == output.token_ids
    (whole,) = engine.generate([request])
    assert (whole.text, whole.token_ids) == (output.text, output.token_ids)


def test_closing_the_stream_aborts_the_request(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True, context=100_000)
    request = Request(prompt="fox", sampling=SamplingParams(max_tokens=90_000), id="r")

    async def leave_early() -> None:
        async with aclosing(engine.stream(request)) as chunks:
            async for _ in chunks:
                break
        assert not engine.abort("r")  # it no longer runs

    asyncio.run(leave_early())
    assert len(asyncio.run(collect(engine, Request(prompt="fox", id="r")))) > 1


def test_abort_ends_a_stream_with_its_output(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True, context=100_000)
    request = Request(prompt="fox", sampling=SamplingParams(max_tokens=90_000), id="r")

    async def abort_after_two() -> Chunk:
        seen: list[Chunk] = []
        async for chunk in engine.stream(request):
            seen.append(chunk)
            if len(seen) == 2:
                assert engine.abort("r")
        return seen[-1]

    output = asyncio.run(abort_after_two()).output
    assert output is not None and output.finish_reason is FinishReason.ABORTED


def test_cancelling_the_task_stops_the_decoding(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True, context=100_000)
    request = Request(prompt="fox", sampling=SamplingParams(max_tokens=90_000), id="r")

    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(collect(engine, request), 0.3)

    asyncio.run(cancel())
    assert not engine.abort("r")


def test_two_streams_at_once(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    requests = [Request(prompt=p, sampling=SamplingParams(max_tokens=30)) for p in ("fox", "dog")]

    async def both() -> list[list[Chunk]]:
        return await asyncio.gather(*(collect(engine, r) for r in requests))

    streamed = [chunks[-1].output for chunks in asyncio.run(both())]
    assert [o and o.token_ids for o in streamed] == [o.token_ids for o in engine.generate(requests)]


def test_a_bad_request_raises_at_the_first_chunk(tiny: Tiny) -> None:
    engine = tiny("llama", context=32)
    with pytest.raises(PromptTooLong):
        asyncio.run(collect(engine, Request(token_ids=[5] * 32)))
