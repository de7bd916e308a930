"""Whether this server takes requests: the one route without a key."""

from __future__ import annotations

from typing import Literal

from fastapi import Response
from pydantic import BaseModel

from api.http.deps import ServiceDep
from api.http.errors import RETRY_SECONDS
from api.http.routing import router as build
from api.http.store import reachable
from api.jobs.errors import QueueUnavailable

router = build("health", keyed=False)


class Health(BaseModel):
    """`draining` stops, `unavailable` has no Redis; neither takes requests."""

    status: Literal["ok", "draining", "unavailable"]


@router.get("/health", responses={503: {"model": Health}})
async def health(service: ServiceDep, response: Response) -> Health:
    """Say whether requests are taken; with 503 they are not."""
    if service.draining.is_set():
        found = Health(status="draining")
    else:
        try:
            async with reachable():
                await service.redis.ping()
            return Health(status="ok")
        except QueueUnavailable:
            found = Health(status="unavailable")
    response.status_code = 503
    response.headers["Retry-After"] = str(int(RETRY_SECONDS))
    return found
