"""Figures about the whole service, for Prometheus."""

from __future__ import annotations

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.http.deps import ServiceDep, need
from api.http.keys import Scope
from api.http.routing import router as build

router = build("metrics")
router.dependencies.append(need(Scope.ADMIN))


class Exposition(Response):
    """Prometheus' text format."""

    media_type = CONTENT_TYPE_LATEST


@router.get("/metrics", response_class=Exposition)
async def metrics(service: ServiceDep) -> Response:
    """Requests by route, jobs by state, and what stands before the engine."""
    counted = service.metrics
    for state, number in (await service.queue.counts()).items():
        counted.jobs.labels(state.value).set(number)
    for name, value in service.gate.figures().items():
        counted.engine.labels(name).set(value)
    return Exposition(generate_latest(counted.registry))
