"""Routes that read JSON strictly; every router of the API is made here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.http.errors import ApiError, documented

MAX_DEPTH = 32
"""Deepest nesting of a body."""

LARGEST = 2**63 - 1
"""Largest integer of a body: what SQLite and Postgres hold."""

bearer = HTTPBearer(auto_error=False, description="an API key: rw_<id>_<secret>")
"""Only for the document: the middleware has checked the key before any route is looked for."""


def read_json(body: bytes) -> Any:
    """A JSON body; raises ApiError 400 for what is not JSON in UTF-8, or no store could hold.

    orjson refuses NaN, lone surrogates and invalid UTF-8, which `json` lets pass.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON in UTF-8: {error}") from None
    if (problem := _problem(value, MAX_DEPTH)) is not None:
        raise ApiError(400, "invalid_json", f"the body {problem}")
    return value


def _problem(value: Any, depth: int) -> str | None:
    """Why a value is not taken, or None: nesting, integers of 64 bits, and U+0000 in texts."""
    if isinstance(value, str):
        return "holds the character U+0000; leave it out" if "\0" in value else None
    if isinstance(value, int):
        return None if -LARGEST <= value <= LARGEST else f"holds {value}, which is too large"
    if not isinstance(value, dict | list):
        return None
    if depth == 0:
        return f"is nested deeper than {MAX_DEPTH}; flatten it"
    parts = itertools.chain(value, value.values()) if isinstance(value, dict) else iter(value)
    problems = (_problem(part, depth - 1) for part in parts)
    return next((problem for problem in problems if problem is not None), None)


class JsonRequest(Request):
    """A request whose JSON is read strictly."""

    async def json(self) -> Any:
        """The body's value; raises ApiError 400."""
        return read_json(await self.body())


class JsonRoute(APIRoute):
    """A route of JsonRequests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler over the strict request."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return strict


def router(tag: str, *, keyed: bool = True) -> APIRouter:
    """A router for the table in `api.http.app`; `keyed` documents that it needs a key."""
    return APIRouter(
        tags=[tag],
        route_class=JsonRoute,
        responses=documented(),
        dependencies=[Security(bearer)] if keyed else [],
    )
