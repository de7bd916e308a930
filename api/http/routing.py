"""Routes that read JSON strictly; every router of the API is made here."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.http.errors import ApiError, documented

MAX_DEPTH = 32
"""Deepest nesting of a body."""

bearer = HTTPBearer(auto_error=False, description="an API key: rw_<id>_<secret>")
"""Only for the document: the middleware has checked the key before any route is looked for."""


def read_json(body: bytes) -> Any:
    """A JSON body; raises ApiError 400 for anything that is not JSON in UTF-8, or too deep.

    orjson refuses NaN, lone surrogates and invalid UTF-8, which `json` lets pass.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON in UTF-8: {error}") from None
    if _deeper(value, MAX_DEPTH):
        message = f"the body is nested deeper than {MAX_DEPTH}; flatten it"
        raise ApiError(400, "too_deep", message)
    return value


def _deeper(value: Any, left: int) -> bool:
    if isinstance(value, dict):
        return left == 0 or any(_deeper(item, left - 1) for item in value.values())
    if isinstance(value, list):
        return left == 0 or any(_deeper(item, left - 1) for item in value)
    return False


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
