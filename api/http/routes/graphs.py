"""Knowledge graphs of a tenant: made of uploads, extended, searched, walked, deleted."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, cast

from fastapi import Request, Response
from pydantic import BaseModel, Field, StringConstraints

from api.http.deps import CallerDep, ServiceDep, need
from api.http.door import Caller
from api.http.errors import documented
from api.http.keys import Scope
from api.http.routes import uploads
from api.http.routes.bodies import Body, Name
from api.http.routes.uploads import Entries, Files, Hit, ItemName, Search
from api.http.routing import router as build
from api.http.service import Service
from api.library.entry import Entry
from api.library.rows import fact_rows
from graphs.facts import LONGEST
from graphs.retriever import GraphRetriever
from graphs.walk import Direction

router = build("graphs")
READ, WRITE = need(Scope.READ), need(Scope.WRITE)
PATH = "/v1/graphs"

Text = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST)]
Mention = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST, pattern=r"\S")]


class TripleBody(Body):
    """A fact; `source` says where it is from."""

    head: Text
    relation: Text
    tail: Text
    source: str = Field("", max_length=1_000)


class Triples(Body):
    """Facts to add; those that are there stay as they are."""

    triples: list[TripleBody] = Field(min_length=1, max_length=uploads.MAX_ROWS)


class NewGraph(Triples):
    """A graph to make, and its facts."""

    name: Name


class GraphSearch(Search):
    """A search for facts within `hops` of the entities that a query mentions."""

    hops: int = Field(2, ge=1, le=4)


class Walk(Body):
    """Which facts may be followed, and how far; `relations` null means all."""

    limit: int = Field(100, ge=1, le=1_000)
    relations: list[Text] | None = Field(None, min_length=1, max_length=100)
    direction: Direction = Field(Direction.BOTH, strict=False)


class NeighboursBody(Walk):
    """Facts around an entity, named by its identity or one of its names."""

    entity: Mention
    hops: int = Field(1, ge=1, le=4)


class PathsBody(Walk):
    """Paths of at most `hops` facts; `shortest` leaves out all that are longer than the best."""

    start: Mention = Field(alias="from")
    goal: Mention = Field(alias="to")
    hops: int = Field(4, ge=1, le=8)
    limit: int = Field(10, ge=1, le=100)
    shortest: bool = False


class MatchBody(BaseModel):
    """An entity and how it was found: exact, name, words or spelling."""

    entity: str
    label: str
    mention: str
    how: str
    score: float


class FactBody(BaseModel):
    """A fact and where it was read; `line` counts from 1 where it is known."""

    id: str
    head: str
    relation: str
    tail: str
    text: str
    source: str
    line: int | None


class NearBody(FactBody):
    """A fact and its hops from the entity."""

    hop: int


class LegBody(FactBody):
    """A fact of a path, the entity it leads to, and whether that is its tail."""

    to: str
    forward: bool


class PathBody(BaseModel):
    """The facts of a path in order."""

    length: int
    facts: list[LegBody]


class Neighbours(BaseModel):
    """Facts, nearest first; not `complete` if a limit left some out."""

    entity: MatchBody
    facts: list[NearBody]
    complete: bool


class Paths(BaseModel):
    """Paths, shortest first; not `complete` if a limit left some out."""

    start: MatchBody = Field(serialization_alias="from")
    goal: MatchBody = Field(serialization_alias="to")
    paths: list[PathBody]
    complete: bool


class GraphResult(BaseModel):
    """What a query mentions, and the facts found around it, best first."""

    id: str
    query: str
    linked: list[MatchBody]
    hits: list[Hit]


class GraphResults(BaseModel):
    """What was found, a result per query."""

    results: list[GraphResult]


@router.get(PATH, dependencies=[need(Scope.READ, Scope.RUNS)])
async def list_graphs(service: ServiceDep, caller: CallerDep) -> Entries:
    """The tenant's graphs by name."""
    return Entries(data=await asyncio.to_thread(service.library.graphs.list, caller.tenant))


@router.post(
    PATH,
    status_code=201,
    dependencies=[WRITE],
    responses={**documented(409, 415, 507), 202: {"model": Entry}},
    openapi_extra=uploads.described(NewGraph, named=True),
)
async def create_graph(
    request: Request, response: Response, service: ServiceDep, caller: CallerDep
) -> Entry:
    """Make a graph of uploaded files (.tsv .ttl .nt .graphml), or of triples in JSON.

    A small one is built before the answer (201); of a larger one the answer is 202.
    """
    uploads.require_uploads(service)
    async with uploads.reading(request, NewGraph, named=True) as given:
        entry = await asyncio.to_thread(_take, service, caller, given.name or "", given, False)
    return uploads.answer(entry, response)


@router.get(f"{PATH}/{{name}}", dependencies=[READ], responses=documented(404))
async def get_graph(name: ItemName, service: ServiceDep, caller: CallerDep) -> Entry:
    """Its state and size."""
    return await asyncio.to_thread(service.library.graphs.get, caller.tenant, name)


@router.post(
    f"{PATH}/{{name}}/triples",
    dependencies=[WRITE],
    responses={**documented(404, 409, 415, 507), 202: {"model": Entry}},
    openapi_extra=uploads.described(Triples, named=False),
)
async def add_to_graph(
    name: ItemName,
    request: Request,
    response: Response,
    service: ServiceDep,
    caller: CallerDep,
) -> Entry:
    """Add facts from files or JSON; searches see all of them at once."""
    uploads.require_uploads(service)
    async with uploads.reading(request, Triples, named=False) as given:
        entry = await asyncio.to_thread(_take, service, caller, name, given, True)
    return uploads.answer(entry, response)


@router.post(f"{PATH}/{{name}}/search", dependencies=[READ], responses=documented(404, 409))
async def search_graph(
    name: ItemName, search: GraphSearch, service: ServiceDep, caller: CallerDep
) -> GraphResults:
    """The best facts for one query or several, and the entities that each mentions."""

    def run() -> GraphResults:
        retriever = _open(service, caller, name, hops=search.hops)
        found = search.run(retriever)
        for result in found:
            links = retriever.store.link(result["query"], retriever.links)
            result["linked"] = [link.to_dict() for link in links]
        return GraphResults.model_validate({"results": found})

    return await asyncio.to_thread(run)


@router.post(f"{PATH}/{{name}}/neighbours", dependencies=[READ], responses=documented(404, 409))
async def neighbours(
    name: ItemName, asked: NeighboursBody, service: ServiceDep, caller: CallerDep
) -> Neighbours:
    """The facts around an entity."""

    def run() -> Neighbours:
        store = _open(service, caller, name).store
        match = store.entity(asked.entity)
        found = store.neighbours(
            match.entity, asked.hops, asked.limit, asked.relations, asked.direction
        )
        facts = [{**store.describe(near.row), "hop": near.hop} for near in found.near]
        whole = {"entity": match.to_dict(), "facts": facts, "complete": found.complete}
        return Neighbours.model_validate(whole)

    return await asyncio.to_thread(run)


@router.post(f"{PATH}/{{name}}/paths", dependencies=[READ], responses=documented(404, 409))
async def paths(name: ItemName, asked: PathsBody, service: ServiceDep, caller: CallerDep) -> Paths:
    """The paths between two entities."""

    def run() -> Paths:
        store = _open(service, caller, name).store
        start, goal = store.entity(asked.start), store.entity(asked.goal)
        found = store.paths(
            start.entity,
            goal.entity,
            asked.hops,
            asked.limit,
            asked.relations,
            asked.direction,
            shortest=asked.shortest,
        )
        whole = {
            "start": start.to_dict(),
            "goal": goal.to_dict(),
            "paths": [store.describe_path(path) for path in found.paths],
            "complete": found.complete,
        }
        return Paths.model_validate(whole)

    return await asyncio.to_thread(run)


@router.post(
    f"{PATH}/{{name}}/restart",
    dependencies=[WRITE],
    responses={**documented(404, 409, 507), 202: {"model": Entry}},
)
async def restart_graph(
    name: ItemName, response: Response, service: ServiceDep, caller: CallerDep
) -> Entry:
    """Build again what a stop or a failure cut off, from what was uploaded."""
    uploads.require_uploads(service)
    shelf = service.library.graphs
    entry = await asyncio.to_thread(shelf.restart, caller.tenant, name, uploads.WAIT)
    return uploads.answer(entry, response)


@router.delete(
    f"{PATH}/{{name}}", status_code=204, dependencies=[WRITE], responses=documented(404, 409)
)
async def delete_graph(name: ItemName, service: ServiceDep, caller: CallerDep) -> Response:
    """Delete a graph with all its versions; a run that has it open goes on with it."""
    await asyncio.to_thread(service.library.graphs.delete, caller.tenant, name)
    return Response(status_code=204)


def _open(service: Service, caller: Caller, name: str, **options: Any) -> GraphRetriever:
    shelf = service.library.graphs
    return cast(GraphRetriever, shelf.open(caller.tenant, name, None, **options))


def _take(
    service: Service, caller: Caller, name: str, given: Files | Triples, extend: bool
) -> Entry:
    shelf, tenant = service.library.graphs, caller.tenant
    if isinstance(given, Files):
        wait = uploads.patience(given.size)
        return shelf.files(tenant, name, given.files, extend=extend, wait=wait)
    rows = fact_rows([triple.model_dump() for triple in given.triples])
    return shelf.rows(tenant, name, rows, extend=extend, wait=uploads.WAIT)
