"""How much a caller may send, and how long an answer may take."""

from __future__ import annotations

import asyncio
import math
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import ApiError
from api.settings import Settings

GRACE = 1.0
"""Seconds after its deadline until a request is ended here; the engine ends it before."""


class BodyLimit:
    """Refuses bodies over `max_body`, whether or not they say their length."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.most = settings.max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise ApiError(400, "bad_length", f"Content-Length {length!r} is no number")
        if int(length[:20]) > self.most:
            raise self._refusal()
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self.most:
                    raise self._refusal()
            return message

        await self.app(scope, counted, send)

    def _refusal(self) -> ApiError:
        message = f"the body is larger than {self.most} bytes; send less"
        return ApiError(413, "body_too_large", message, headers={"Connection": "close"})


class Deadline:
    """Gives every request a time by which its answer must have begun.

    `X-Request-Timeout` (seconds) asks for less than the setting. The time is put into the state
    for whoever computes, who keeps it exactly; a request that is still silent after it is ended
    here. An answer that has begun is its route's to end.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.most = settings.request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seconds = self._seconds(Headers(scope=scope).get("x-request-timeout"))
        scope["state"]["deadline"] = time.monotonic() + seconds
        late = asyncio.timeout(seconds + GRACE)

        async def begin(message: Message) -> None:
            late.reschedule(None)
            await send(message)

        try:
            async with late:
                await self.app(scope, receive, begin)
        except TimeoutError:
            if not late.expired():
                raise
            message = f"no answer within {seconds:g} seconds"
            raise ApiError(504, "deadline_exceeded", message) from None

    def _seconds(self, given: str | None) -> float:
        if given is None:
            return self.most
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            message = f"X-Request-Timeout {given!r} must be a number of seconds above 0"
            raise ApiError(400, "bad_timeout", message, param="X-Request-Timeout")
        return min(seconds, self.most)
