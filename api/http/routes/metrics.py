"""Figures about the whole service, for Prometheus."""

from __future__ import annotations

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.http.deps import need
from api.http.keys import Scope
from api.http.routing import router as build

router = build("metrics")
router.dependencies.append(need(Scope.ADMIN))


class Exposition(Response):
    """Prometheus' text format."""

    media_type = CONTENT_TYPE_LATEST
