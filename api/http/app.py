"""The application: its routes, and what stands in front of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api.errors import FAILED
from api.http.auth import Auth
from api.http.edge import Edge
from api.http.errors import known
from api.http.limits import BodyLimit, Deadline
from api.http.openai import chat, completions, embeddings, listing
from api.http.routes import graphs, health, indexes, metrics, runs, workflows
from api.http.service import Service

ROUTERS: Sequence[APIRouter] = (
    health.router,
    metrics.router,
    runs.router,
    workflows.router,
    indexes.router,
    graphs.router,
    chat.router,
    completions.router,
    embeddings.router,
    listing.router,
)
"""Every router of the API; each is made by `api.http.routing.router`."""


def create_app(service: Service) -> FastAPI:
    """The API over a service, which stays its maker's to close."""
    app = FastAPI(
        title="Ragwright",
        version=importlib.metadata.version("ragwright"),
        description="Agentic RAG and reasoning workflows over your own documents.",
        generate_unique_id_function=_operation,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    for kind in (HTTPException, RequestValidationError, *FAILED):
        app.add_exception_handler(kind, _shape)
    # The last one added is the first to see a request.
    app.add_middleware(Deadline, settings=service.settings)
    app.add_middleware(BodyLimit, settings=service.settings)
    app.add_middleware(Auth, service=service)
    app.add_middleware(Edge, service=service)
    return app


def _operation(route: APIRoute) -> str:
    return route.name


async def _shape(request: Request, error: Exception) -> JSONResponse:
    answer = known(error)
    assert answer is not None, "only expected errors are handled here"
    return answer.response(request.scope["state"]["request_id"])
