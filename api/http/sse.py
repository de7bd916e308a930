"""Events of a job as a stream (server-sent events) that can be taken up again anywhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.errors import ApiError
from api.http.leaving import UNCACHED, until_left
from api.jobs.errors import QueueUnavailable
from api.jobs.job import JobEvent

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that nobody in between hangs up."""

RECONNECT = b"retry: 1000\n\n"
"""How many milliseconds a reader waits before it comes back."""

LINE_ENDS = {
    "\x85".encode(): b"\\u0085",
    "\u2028".encode(): b"\\u2028",
    "\u2029".encode(): b"\\u2029",
}
"""Characters that JSON lets stand and some readers of lines break at."""

EVENT = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["event", "data"],
}
"""JSON Schema of one event; `data` is JSON in one line."""

_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")


class EventStream(Response):
    """An answer of events, never cached or held back on its way.

    Starlette's streaming response leaves a generator that waits in `yield` unclosed when the
    client goes; this one closes its frames whatever happens.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes]) -> None:
        super().__init__(headers=UNCACHED)
        del self.headers["content-length"]
        self.frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: write until the frames end or the client is gone."""
        writing = await until_left(self._write(send), receive)
        if not writing.cancelled():
            writing.result()

    async def _write(self, send: Send) -> None:
        async with aclosing(self.frames) as frames:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            async for chunk in frames:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def resume_point(given: str | None) -> str:
    """Where a reader goes on: `Last-Event-ID`, or the beginning; raises ApiError 400."""
    if given is None or given == "":
        return "0"
    found = _ID.fullmatch(given)
    if found is None or any(int(part or 0) >= 2**64 for part in found.groups()):
        message = f"Last-Event-ID {given[:50]!r} is not an id of this stream; leave it out"
        raise ApiError(400, "bad_event_id", message, param="Last-Event-ID")
    return given


def frame(event: str, data: Any, id: str | None = None) -> bytes:
    """One event on the wire, its data on one line whatever a reader takes for a line's end."""
    line = orjson.dumps(data)
    for found, escaped in LINE_ENDS.items():
        line = line.replace(found, escaped)
    head = f"id: {id}\n" if id is not None else ""
    return f"{head}event: {event}\n".encode() + b"data: " + line + b"\n\n"


async def frames(
    events: AsyncIterator[JobEvent],
    end: Callable[[], Awaitable[Any]],
    stop: asyncio.Event,
    heartbeat: float = HEARTBEAT,
) -> AsyncGenerator[bytes]:
    """The events, then `end` with what `end` says.

    Without an `end` the stream was cut: the server stops, or Redis does not answer. The reader
    comes back with the last id it saw and misses nothing. However this ends, `events` is closed.
    """
    stopping = asyncio.ensure_future(stop.wait())
    coming: asyncio.Future[JobEvent | None] | None = None
    try:
        yield RECONNECT
        while True:
            coming = coming or asyncio.ensure_future(anext(events, None))
            either: set[asyncio.Future[Any]] = {coming, stopping}
            await asyncio.wait(either, timeout=heartbeat, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                event, coming = coming.result(), None
                if event is None:
                    yield frame("end", await end())
                    return
                yield frame(str(event.data.get("type", "message")), event.data, event.id)
            elif stopping.done():
                return
            else:
                yield b": still here\n\n"
    except QueueUnavailable:
        yield b": Redis does not answer\n\n"
    finally:
        stopping.cancel()
        if coming is not None:
            await _cancelled(coming)
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """End a task that reads from Redis.

    redis-py loses a cancellation that comes while it connects, so one request may not be enough.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.2)
    if not task.cancelled():
        task.exception()
