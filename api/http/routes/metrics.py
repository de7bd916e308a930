"""Figures about the whole service, for Prometheus."""

from __future__ import annotations

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.http.deps import ServiceDep, need
from api.http.keys import Scope
from api.http.routing import router as build

router = build("metrics")
router.dependencies.append(need(Scope.ADMIN))


# A plain Response as class, so that the document has errors as JSON.
@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
)
async def metrics(service: ServiceDep) -> Response:
    """Requests by route, jobs by state, and what stands before the engine."""
    counted = service.metrics
    for state, number in (await service.queue.counts()).items():
        counted.jobs.labels(state.value).set(number)
    for name, value in service.gate.figures().items():
        counted.engine.labels(name).set(value)
    return Response(generate_latest(counted.registry), media_type=CONTENT_TYPE_LATEST)
