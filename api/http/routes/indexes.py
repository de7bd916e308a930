"""Indexes of a tenant: made of uploaded documents, extended, searched, deleted."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import Field, StrictInt, StringConstraints

from api.http.deps import CallerDep, ServiceDep, need
from api.http.door import Caller
from api.http.errors import documented
from api.http.keys import Scope
from api.http.routes import uploads
from api.http.routes.bodies import Body, Name
from api.http.routes.uploads import Entries, Files, ItemName, Results, Search
from api.http.routing import router as build
from api.http.service import Service
from api.library.entry import Entry
from api.library.rows import document_rows

router = build("indexes")
READ, WRITE = need(Scope.READ), need(Scope.WRITE)
PATH = "/v1/indexes"


class DocumentBody(Body):
    """A document; `metadata` is what searches may filter by."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=512)] | StrictInt
    title: str = Field("", max_length=1_000)
    text: str = Field(min_length=1, max_length=8 * 2**20)
    metadata: dict[str, Any] = Field({}, max_length=64)


class Documents(Body):
    """Documents to add; one of an id that is there replaces it."""

    documents: list[DocumentBody] = Field(min_length=1, max_length=uploads.MAX_ROWS)


class NewIndex(Documents):
    """An index to make, and its documents."""

    name: Name


class IndexSearch(Search):
    """A search, and the retriever that makes it."""

    retriever: Literal["hybrid", "dense", "bm25"] = "hybrid"


@router.get(PATH, dependencies=[need(Scope.READ, Scope.RUNS)])
async def list_indexes(service: ServiceDep, caller: CallerDep) -> Entries:
    """The tenant's indexes by name."""
    return Entries(data=await asyncio.to_thread(service.library.indexes.list, caller.tenant))


@router.post(
    PATH,
    status_code=201,
    dependencies=[WRITE],
    responses={**documented(409, 415, 507), 202: {"model": Entry}},
    openapi_extra=uploads.described(NewIndex, named=True),
)
async def create_index(
    request: Request, response: Response, service: ServiceDep, caller: CallerDep
) -> Entry:
    """Make an index of uploaded files (.txt .md .html .pdf .jsonl), or of documents in JSON.

    A small one is built before the answer (201); of a larger one the answer is 202, and GET tells
    how far it is.
    """
    uploads.require_uploads(service)
    async with uploads.reading(request, NewIndex, named=True) as given:
        entry = await asyncio.to_thread(_take, service, caller, given.name or "", given, False)
    return uploads.answer(entry, response)


@router.get(f"{PATH}/{{name}}", dependencies=[READ], responses=documented(404))
async def get_index(name: ItemName, service: ServiceDep, caller: CallerDep) -> Entry:
    """Its state, size, and while it is built how far that is."""
    return await asyncio.to_thread(service.library.indexes.get, caller.tenant, name)


@router.post(
    f"{PATH}/{{name}}/documents",
    status_code=200,
    dependencies=[WRITE],
    responses={**documented(404, 409, 415, 507), 202: {"model": Entry}},
    openapi_extra=uploads.described(Documents, named=False),
)
async def add_to_index(
    name: ItemName,
    request: Request,
    response: Response,
    service: ServiceDep,
    caller: CallerDep,
) -> Entry:
    """Add documents, or replace those of the same id; searches see all of them at once."""
    uploads.require_uploads(service)
    async with uploads.reading(request, Documents, named=False) as given:
        entry = await asyncio.to_thread(_take, service, caller, name, given, True)
    return uploads.answer(entry, response)


@router.post(f"{PATH}/{{name}}/search", dependencies=[READ], responses=documented(404, 409))
async def search_index(
    name: ItemName, search: IndexSearch, service: ServiceDep, caller: CallerDep
) -> Results:
    """The best passages for one query or several."""

    def run() -> Results:
        retriever = service.library.indexes.open(caller.tenant, name, search.retriever)
        return Results.model_validate({"results": search.run(retriever)})

    return await asyncio.to_thread(run)


@router.post(
    f"{PATH}/{{name}}/restart",
    dependencies=[WRITE],
    responses={**documented(404, 409, 507), 202: {"model": Entry}},
)
async def restart_index(
    name: ItemName, response: Response, service: ServiceDep, caller: CallerDep
) -> Entry:
    """Build again what a stop or a failure cut off, from what was uploaded."""
    uploads.require_uploads(service)
    shelf = service.library.indexes
    entry = await asyncio.to_thread(shelf.restart, caller.tenant, name, uploads.WAIT)
    return uploads.answer(entry, response)


@router.delete(
    f"{PATH}/{{name}}", status_code=204, dependencies=[WRITE], responses=documented(404, 409)
)
async def delete_index(name: ItemName, service: ServiceDep, caller: CallerDep) -> Response:
    """Delete an index with all its versions; a run that has it open goes on with it."""
    await asyncio.to_thread(service.library.indexes.delete, caller.tenant, name)
    return Response(status_code=204)


def _take(
    service: Service, caller: Caller, name: str, given: Files | Documents, extend: bool
) -> Entry:
    shelf, tenant = service.library.indexes, caller.tenant
    if isinstance(given, Files):
        wait = uploads.patience(given.size)
        return shelf.files(tenant, name, given.files, extend=extend, wait=wait)
    rows = document_rows([document.model_dump() for document in given.documents])
    wait = uploads.patience(sum(len(row[3]) for row in rows))
    return shelf.rows(tenant, name, rows, extend=extend, wait=wait)
