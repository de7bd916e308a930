"""The outermost middleware: request ids, what is no sane request, errors, log and counters."""

from __future__ import annotations

import logging
import re
import secrets
import time
import traceback
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import RETRY_SECONDS, ApiError, known, unexpected
from api.http.service import Service

MAX_URL = 8192
"""Longest path and query together, in bytes."""

OPEN = "/health"
"""The one path that needs no key and is answered while the server drains."""

access = logging.getLogger("ragwright.access")
log = logging.getLogger("ragwright.http")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}


class Edge:
    """Gives every request an id and every failure the one shape; nothing passes it unanswered."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, send, self.service)
        self.service.in_flight += 1
        try:
            await self._answer(exchange, scope, receive)
        finally:
            self.service.in_flight -= 1
            exchange.note()

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        try:
            require_sane(scope)
            if self.service.draining.is_set() and scope["path"] != OPEN:
                message = "this server is stopping; send the request again"
                raise ApiError(503, "draining", message, retry_after=RETRY_SECONDS)
            await self.app(scope, receive, exchange.send)
        except Exception as error:
            answer = known(error)
            if answer is None:
                self._log(error, exchange.request_id)
                answer = unexpected()
            if exchange.status is None:
                await answer.response(exchange.request_id)(scope, receive, exchange.send)
            # Else the answer has begun: returning without its end makes the server cut the
            # connection, which is the one honest thing left to say.

    def _log(self, error: Exception, request_id: str) -> None:
        """The traceback; the error's own text may quote a document, so only where that is asked."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        said = f": {error}" if self.service.settings.log_content else ""
        log.error("request %s broke\n%s%s%s", request_id, frames, type(error).__name__, said)


class Exchange:
    """One request and its answer, as far as it has got."""

    def __init__(self, scope: Scope, send: Send, service: Service) -> None:
        self.scope = scope
        self.service = service
        self.started = time.monotonic()
        self.status: int | None = None
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _ID.fullmatch(given) else secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = self.request_id
        service.metrics.in_flight.inc()
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass the answer on, with the request's id on it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
        await self._send(message)

    def note(self) -> None:
        """Count and log it: who, what, how long; never the query, a body or a secret."""
        scope, metrics = self.scope, self.service.metrics
        seconds = time.monotonic() - self.started
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        status = str(self.status or "none")
        metrics.in_flight.dec()
        metrics.requests.labels(method, route, status).inc()
        metrics.seconds.labels(method, route).observe(seconds)
        caller = scope["state"].get("caller")
        access.info(
            "%s %s %s %.4fs request=%s key=%s tenant=%s",
            method,
            route,
            status,
            seconds,
            self.request_id,
            caller.key_id if caller else "-",
            caller.tenant if caller else "-",
        )


def require_sane(scope: Scope) -> None:
    """Raises ApiError for a URL that is too long, not UTF-8, or holds control characters."""
    raw = scope.get("raw_path") or scope["path"].encode()
    if len(raw) + len(scope["query_string"]) > MAX_URL:
        status = HTTPStatus.REQUEST_URI_TOO_LONG
        raise ApiError(status, "url_too_long", f"the URL is longer than {MAX_URL} bytes")
    for part, name in ((raw, "path"), (scope["query_string"], "query")):
        try:
            text = unquote_to_bytes(part).decode()
        except UnicodeDecodeError:
            raise ApiError(400, "bad_url", f"the {name} of the URL is not UTF-8") from None
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            message = f"the {name} of the URL holds control characters"
            raise ApiError(400, "bad_url", message)
