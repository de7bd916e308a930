"""A client of a Ragwright server, with the methods that agents have."""

from api.client.errors import (
    BadRequest,
    Busy,
    Conflict,
    Forbidden,
    NotFound,
    ServerFault,
    ServiceError,
    Unreachable,
)
from api.client.faces import Client
from api.client.records import RunRecord, StateChanged
from api.client.remote import AsyncClient
from api.client.shelves import Shelf, Workflows

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Busy",
    "Client",
    "Conflict",
    "Forbidden",
    "NotFound",
    "RunRecord",
    "ServerFault",
    "ServiceError",
    "Shelf",
    "StateChanged",
    "Unreachable",
    "Workflows",
]
