"""Answers that are computed while they are sent, and stop when the client leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.errors import known
from api.http.leaving import UNCACHED, until_left
from api.http.openai.refusals import in_protocol

DONE = b"data: [DONE]\n\n"


class Answering(Response):
    """Runs `work` with the way to the client; whoever waits, queues or computes in it is cancelled
    when the client goes, whatever it does just then.

    Its errors before the answer began are answers with a status.
    """

    def __init__(self, work: Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        working = await until_left(self.work(send), receive)
        if not working.cancelled():
            error = working.exception()
            if isinstance(error, Exception):
                raise in_protocol(error) from error.__cause__
            working.result()


def whole(compute: Callable[[], Awaitable[Any]]) -> Answering:
    """An answer that is sent when it is complete."""

    async def work(send: Send) -> None:
        answer = Response(orjson.dumps(await compute()), media_type="application/json")
        start = {"status": answer.status_code, "headers": answer.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": answer.body})

    return Answering(work)


def streamed(
    pieces: Callable[[], AsyncGenerator[dict[str, Any], None]], request_id: str
) -> Answering:
    """Server-sent events, one per piece; headers go with the first, so that errors before it tell
    their status.

    An error after it is an event of its own, which the openai client raises; then no [DONE] comes.
    """

    async def work(send: Send) -> None:
        began = False

        async def write(data: bytes, more: bool = True) -> None:
            nonlocal began
            if not began:
                began = True
                head = Response(media_type="text/event-stream", headers=UNCACHED)
                del head.headers["content-length"]
                start = {"status": 200, "headers": head.raw_headers}
                await send({"type": "http.response.start", **start})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async with aclosing(pieces()) as found:
                async for piece in found:
                    await write(b"data: " + orjson.dumps(piece) + b"\n\n")
            await write(DONE)
        except Exception as error:
            answer = known(in_protocol(error))
            if not began or answer is None:  # a defect of ours is logged where all are
                raise
            await write(b"data: " + bytes(answer.response(request_id).body) + b"\n\n")
        await write(b"", more=False)

    return Answering(work)
