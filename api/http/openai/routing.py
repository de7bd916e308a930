"""What the routes of the protocol have in common."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Security

from api import telemetry
from api.http.deps import CallerDep, DeadlineDep, ServiceDep, need
from api.http.errors import documented
from api.http.keys import Scope
from api.http.openai.refusals import ProtocolRoute
from api.http.openai.served import Ask
from api.http.routing import bearer


def build(tag: str) -> APIRouter:
    """A router whose routes need the scope `infer` and refuse as OpenAI's do."""
    return APIRouter(
        tags=[tag],
        route_class=ProtocolRoute,
        responses=documented(404),
        dependencies=[Security(bearer), need(Scope.INFER)],
    )


async def _ask(
    request: Request, service: ServiceDep, caller: CallerDep, deadline: DeadlineDep
) -> Ask:
    trace = telemetry.carrier(request.headers)
    return Ask(service, caller, deadline, request.scope["state"]["request_id"], trace)


AskDep = Annotated[Ask, Depends(_ask)]
