"""The engine at work for a client: in threads of its own, ended when the client is gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from statistics import fmean
from typing import TypeVar

from api import telemetry
from api.http.errors import ApiError
from api.http.gate import Visit
from api.http.openai.served import Ask, served_name, too_late
from inference import Chunk, Engine, FinishReason, Output, Request
from workflows.events import ModelCalled

T = TypeVar("T")

ABORT_EVERY = 0.05
"""Seconds after which an abort is repeated: a request on its way in cannot be aborted yet."""


async def in_thread(act: Callable[[], T], stop: Callable[[], object] = lambda: None) -> T:
    """Result of a blocking call in a thread of its own.

    The loop's own few threads would make requests wait for each other. On cancellation `stop` is
    called until the call returns, so that nothing goes on behind the caller's back.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]
        else:
            done.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = act()
        except BaseException as caught:
            error = caught
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="request", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        while not done.done():
            stop()
            await asyncio.wait({done}, timeout=ABORT_EVERY)
        done.exception()
        raise


async def generate(
    engine: Engine, requests: Sequence[Request], visit: Visit, ask: Ask
) -> list[Output]:
    """Outputs in order, `visit.size` sequences at a time; raises for one that has no answer."""
    outputs: list[Output] = []
    for at in range(0, len(requests), visit.size):
        batch = [timed(request, ask.deadline) for request in requests[at : at + visit.size]]

        def stop(batch: Sequence[Request] = batch) -> None:
            for request in batch:
                engine.abort(request.id)

        outputs += await in_thread(lambda batch=batch: engine.generate(batch), stop)  # type: ignore[misc]
    for request, output in zip(requests, outputs, strict=True):
        trace(ask, engine, request, output)
    for output in outputs:
        require_answer(output)
    account(visit, outputs)
    return outputs


async def stream(
    engine: Engine, requests: Sequence[Request], visit: Visit, ask: Ask
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Chunks of all requests as they come, each with the position of its request."""
    outputs: list[Output] = []
    async with aclosing(_merged(engine, requests, visit, ask.deadline)) as found:
        async for at, chunk in found:
            if chunk.output is not None:
                trace(ask, engine, requests[at], chunk.output)
                require_answer(chunk.output)
                outputs.append(chunk.output)
            yield at, chunk
    account(visit, outputs)


async def _merged(
    engine: Engine, requests: Sequence[Request], visit: Visit, deadline: float
) -> AsyncGenerator[tuple[int, Chunk], None]:
    arrived: asyncio.Queue[tuple[int, Chunk] | Exception | None] = asyncio.Queue()
    slots = asyncio.Semaphore(visit.size)

    async def read(at: int) -> None:
        try:
            async with slots:
                # Closing an engine's stream aborts its request, and waits until that is over.
                chunks = engine.stream(timed(requests[at], deadline))
                async with aclosing(chunks):  # type: ignore[type-var]
                    async for chunk in chunks:
                        arrived.put_nowait((at, chunk))
            arrived.put_nowait(None)
        except Exception as error:
            arrived.put_nowait(error)

    readers = [asyncio.ensure_future(read(at)) for at in range(len(requests))]
    try:
        left = len(readers)
        while left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def trace(ask: Ask, engine: Engine, request: Request, output: Output) -> None:
    """Tell telemetry of a generation that belongs to no run; a workflow's are told by its run."""
    seconds = output.stats.seconds
    telemetry.sink(ask.trace)(
        ModelCalled(
            node="",
            task="",
            call=1,
            engine=ask.service.settings.engine,
            model=served_name(engine),
            sampling=asdict(request.sampling),
            finish_reason=output.finish_reason.value,
            started_at=time.time() - seconds,
            seconds=seconds,
            usage=output.usage,
            stats=output.stats.to_dict(),
            operation="text_completion" if request.messages is None else "chat",
        )
    )


def timed(request: Request, deadline: float) -> Request:
    """The request with what is left until the deadline, on the clock of `time.monotonic`."""
    return replace(request, seconds=max(deadline - time.monotonic(), 1e-3))


def require_answer(output: Output) -> None:
    """Raise where an output is none: it failed, was aborted, or the deadline left no token."""
    output.raise_if_failed()
    if output.finish_reason is FinishReason.ABORTED:
        message = "the engine was stopped in mid-answer; send the request again"
        raise ApiError(503, "aborted", message, retry_after=1.0)
    if output.finish_reason is FinishReason.DEADLINE and not output.usage.completion_tokens:
        raise too_late()


def account(visit: Visit, outputs: Sequence[Output]) -> None:
    """Tell the gate that the work is done, and the seconds it took per token."""
    paces = [
        (one.stats.seconds - one.stats.prefill_seconds) / (one.usage.completion_tokens - 1)
        for one in outputs
        if one.usage.completion_tokens > 1
    ]
    visit.done, visit.pace = True, fmean(paces) if paces else None
    visit.tokens = max(one.usage.completion_tokens for one in outputs)
