"""What indexes and graphs share: uploads as multipart files or JSON, items, searches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from fastapi import Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.datastructures import FormData, UploadFile

from api.http.errors import ApiError
from api.http.routes.bodies import Body
from api.http.routing import read_json
from api.http.service import Service
from api.library.entry import Entry, State
from api.library.upload import Given
from retrieval.retriever import Retriever

SMALL = 2**20
"""Bytes of an upload whose build is waited for."""
WAIT = 20.0
MAX_ROWS = 5_000

B = TypeVar("B", bound=BaseModel)

ItemName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Query = Annotated[str, Field(min_length=1, max_length=4_000, pattern=r"\S")]
Count = Annotated[int, Field(ge=1, le=100)]


class Entries(BaseModel):
    """All items of one kind that a tenant has."""

    data: list[Entry]


class Search(Body):
    """One query or several, and what the hits must be.

    `where` keeps passages whose metadata equals each value (a list means any of its members);
    `exclude` holds passage ids.
    """

    query: Query | None = None
    queries: list[Query] | None = Field(None, min_length=1, max_length=64)
    k: Count = 5
    where: dict[str, Any] | None = Field(None, max_length=16)
    exclude: list[str] = Field([], max_length=1_000)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either `query` or `queries`")
        return self

    def asked(self) -> list[str]:
        """The queries."""
        return self.queries if self.queries is not None else [self.query or ""]

    def run(self, retriever: Retriever) -> list[dict[str, Any]]:
        """Results in the shape of `ragwright index search --json`."""
        asked = self.asked()
        found = retriever.search(asked, self.k, exclude=self.exclude, where=self.where)
        return [
            {"id": str(number), "query": query, "hits": [hit.to_dict() for hit in hits]}
            for number, (query, hits) in enumerate(zip(asked, found, strict=True))
        ]


class Hit(BaseModel):
    """A passage or fact; `text` stands from `start` to `end` (characters) in its source."""

    document_id: str
    passage_id: str
    title: str
    source: str
    start: int
    end: int
    text: str
    score: float
    metadata: dict[str, Any]
    ranks: dict[str, int]


class Result(BaseModel):
    """The hits of one query, best first."""

    id: str
    query: str
    hits: list[Hit]


class Results(BaseModel):
    """What was found, a result per query."""

    results: list[Result]


@dataclass(frozen=True)
class Files:
    """A multipart upload."""

    name: str | None
    files: Sequence[Given]
    size: int


@asynccontextmanager
async def reading(request: Request, body: type[B], *, named: bool) -> AsyncIterator[Files | B]:
    """The files of a multipart body, open for the block, or the value of a JSON one.

    Raises ApiError 4xx.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield validated(body, read_json(await request.body()))
        return
    if kind != "multipart/form-data":
        message = f"the body is {kind[:80] or 'nothing'!r}; send JSON or multipart/form-data"
        raise ApiError(415, "unsupported_media_type", message)
    form = await request.form(max_files=1_000, max_fields=8, max_part_size=2**16)
    try:
        yield _files(form, named=named)
    finally:
        await form.close()


def validated(body: type[B], value: Any) -> B:
    """A JSON value as a body; raises RequestValidationError as FastAPI does."""
    try:
        return body.model_validate_json(json.dumps(value))
    except ValidationError as error:
        found = error.errors(include_url=False)
        places = [{**one, "loc": ("body", *one["loc"])} for one in found]
        raise RequestValidationError(places) from None


def _files(form: FormData, *, named: bool) -> Files:
    name: str | None = None
    files: list[Given] = []
    size = 0
    for field, value in form.multi_items():
        if isinstance(value, UploadFile) and field == "files":
            files.append(Given(value.filename or "", value.file))
            size += value.size or 0
        elif isinstance(value, str) and field == "name" and named and name is None:
            name = value
        else:
            wanted = "`name` and `files`" if named else "`files`"
            message = f"the field {field[:80]!r} is not expected here; send {wanted}"
            raise ApiError(422, "invalid_request", message, param=field[:80])
    if named and name is None:
        message = "the field `name` is missing; say what it is to be called"
        raise ApiError(422, "invalid_request", message, param="name")
    return Files(name, files, size)


def patience(size: int) -> float:
    """Seconds to wait for a build: a small one answers with what came of it."""
    return WAIT if size <= SMALL else 0.0


def answer(entry: Entry, response: Response) -> Entry:
    """The entry, with 202 while it is being built."""
    if entry.state == State.BUILDING:
        response.status_code = 202
    return entry


def require_uploads(service: Service) -> None:
    """Raises ApiError 403 where the operator wants none."""
    if not service.settings.allow_uploads:
        message = "this server takes no uploads (RAGWRIGHT_ALLOW_UPLOADS)"
        raise ApiError(403, "uploads_disabled", message)


def described(body: type[BaseModel], *, named: bool) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a body of either kind."""
    files: dict[str, Any] = {
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
        }
    }
    name = {"name": {"type": "string", "minLength": 1, "maxLength": 64}} if named else {}
    schema = {"type": "object", "properties": {**name, **files}, "required": [*name, "files"]}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _inlined(body.model_json_schema())},
                "multipart/form-data": {"schema": schema},
            },
        }
    }


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which would point out of the document it is put into."""
    definitions: Mapping[str, Any] = schema.pop("$defs", {})

    def walk(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return walk(definitions[part["$ref"].rpartition("/")[2]])
            return {key: walk(value) for key, value in part.items()}
        return [walk(one) for one in part] if isinstance(part, list) else part

    inlined: dict[str, Any] = walk(schema)
    return inlined
