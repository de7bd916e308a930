"""What routes ask for: the service, who calls, and the scope that a call needs.

All of them are coroutines: FastAPI would run plain functions in a thread each.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Depends, Request

from api.http.door import Caller
from api.http.errors import ApiError
from api.http.keys import Scope
from api.http.service import Service


async def service_of(request: Request) -> Service:
    """The service that this application was made for."""
    return cast(Service, request.app.state.service)


async def caller_of(request: Request) -> Caller:
    """Whose key the request carries; the middleware let nobody else this far."""
    return cast(Caller, request.scope["state"]["caller"])


ServiceDep = Annotated[Service, Depends(service_of)]
CallerDep = Annotated[Caller, Depends(caller_of)]


class Need:
    """Refuses a caller whose key has none of `scopes`."""

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = scopes

    async def __call__(self, caller: CallerDep) -> None:
        """Raises ApiError 403."""
        if not caller.scopes & set(self.scopes):
            wanted = " or ".join(repr(str(scope)) for scope in self.scopes)
            message = f"this key has no scope {wanted}; use another, or create one that has it"
            raise ApiError(403, "missing_scope", message)


def need(*scopes: Scope) -> Any:
    """A dependency of a route: the caller's key must have one of these scopes."""
    return Depends(Need(*scopes))


async def deadline_of(request: Request) -> float:
    """When the answer must have begun, on the clock of `time.monotonic`."""
    return cast(float, request.scope["state"]["deadline"])


DeadlineDep = Annotated[float, Depends(deadline_of)]
