"""The middleware that lets nobody pass without a key, and no key take more than its share."""

from __future__ import annotations

from collections import Counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.door import Door
from api.http.edge import OPEN
from api.http.errors import RETRY_SECONDS, ApiError
from api.http.service import Service

CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Auth:
    """Deny by default: every path but one needs a key, also one that no route has.

    The caller is put into the request's state. How many requests a key has in flight is counted
    in this process: exact, and nothing to clean up after a crash.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.door = Door(service.redis, service.settings)
        self.flying: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] == OPEN:
            await self.app(scope, receive, send)
            return
        token = _token(Headers(scope=scope))
        caller, wait = await self.door.knock(token)
        if caller is None:
            message = "this API key is unknown, revoked or expired; use another"
            raise ApiError(401, "invalid_key", message, headers=CHALLENGE)
        scope["state"]["caller"] = caller
        if wait > 0:
            message = f"this key may make {self.door.rate} requests a minute; wait"
            raise ApiError(429, "rate_limited", message, retry_after=wait)
        most = self.service.settings.concurrency_per_key
        if self.flying[caller.key_id] >= most:
            message = f"this key has {most} requests in flight, which is its limit; wait for one"
            raise ApiError(429, "too_many_requests", message, retry_after=RETRY_SECONDS)
        self.flying[caller.key_id] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.flying[caller.key_id] -= 1
            if not self.flying[caller.key_id]:
                del self.flying[caller.key_id]


def _token(headers: Headers) -> str:
    """The key of a request; raises ApiError 401 where there is none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        message = "this needs an API key: send the header `Authorization: Bearer rw_...`"
        raise ApiError(401, "missing_key", message, headers=CHALLENGE)
    return token.strip()
