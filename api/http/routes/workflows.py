"""Workflows: those that are shipped, and those that a tenant has uploaded."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Path, Response
from pydantic import BaseModel, Field

from api.http.deps import CallerDep, ServiceDep, need
from api.http.errors import ApiError, documented
from api.http.keys import Scope
from api.http.routes.bodies import Body, Name
from api.http.routing import router as build
from api.http.service import Service
from workflows.diagram import mermaid
from workflows.errors import Fault, InvalidWorkflow, WorkflowInputError
from workflows.loading import Workflow, load_workflow, shipped_workflows
from workflows.schema import InputSpec
from workflows.source import MAX_BYTES

TYPES = {"list": "array"}
"""Types of inputs that JSON Schema calls otherwise."""

router = build("workflows")
READ = need(Scope.READ, Scope.RUNS)
WRITE = need(Scope.WRITE)

WorkflowName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_BYTES, description="a workflow file")]


class Upload(Body):
    """A workflow file and the name under which runs find it."""

    name: Name
    text: Text


class Draft(Body):
    """A workflow file to look through."""

    text: Text


class Row(BaseModel):
    """One workflow of the list."""

    name: str
    description: str
    origin: Literal["shipped", "uploaded"]


class Listing(BaseModel):
    """All workflows of a tenant."""

    data: list[Row]


class Details(Row):
    """A workflow: its text, its picture, and the JSON Schema of a run's `inputs`."""

    sha256: str
    text: str
    mermaid: str
    inputs: dict[str, Any]
    outputs: list[str]


class FaultRow(BaseModel):
    """One thing wrong with a file; line and column count from 1."""

    line: int
    column: int
    code: str
    message: str


class Report(BaseModel):
    """Whether a file may be uploaded, and everything that is wrong with it."""

    valid: bool
    faults: list[FaultRow]


@router.get("/v1/workflows", dependencies=[READ])
async def list_workflows(service: ServiceDep, caller: CallerDep) -> Listing:
    """The shipped workflows, then the tenant's own."""

    def rows() -> list[Row]:
        shipped = [_row(_shipped(name), name, "shipped") for name in shipped_workflows()]
        own = service.library.workflows(caller.tenant)
        found = ((name, service.library.workflow(caller.tenant, name)) for name in own)
        return shipped + [_row(load_workflow(file), name, "uploaded") for name, file in found]

    return Listing(data=await asyncio.to_thread(rows))


@router.get("/v1/workflows/{name}", dependencies=[READ], responses=documented(404))
async def get_workflow(name: WorkflowName, service: ServiceDep, caller: CallerDep) -> Details:
    """A workflow's text, a mermaid flowchart of it, and what it takes."""

    def details() -> Details:
        if name in shipped_workflows():
            return _details(_shipped(name), name, "shipped")
        file = service.library.workflow(caller.tenant, name)
        return _details(load_workflow(file), name, "uploaded")

    return await asyncio.to_thread(details)


@router.post("/v1/workflows/validate", dependencies=[READ])
async def validate_workflow(draft: Draft, service: ServiceDep, caller: CallerDep) -> Report:
    """Say everything that is wrong with a workflow file, each at its line and column."""

    def faults() -> list[Fault]:
        try:
            service.library.check_workflow(caller.tenant, "draft", draft.text)
        except InvalidWorkflow as error:
            return error.faults
        except WorkflowInputError as error:
            return [Fault(1, 1, error.code, str(error))]
        return []

    found = await asyncio.to_thread(faults)
    return Report(valid=not found, faults=[FaultRow(**fault.to_dict()) for fault in found])


@router.post("/v1/workflows", status_code=201, dependencies=[WRITE], responses=documented(409))
async def upload_workflow(upload: Upload, service: ServiceDep, caller: CallerDep) -> Details:
    """Keep a workflow for this tenant's runs, in place of its own of this name.

    It is data: it cannot name code, files outside the tenant's, or hosts.
    """
    _require_uploads(service)

    def keep() -> Details:
        if upload.name in shipped_workflows():
            message = f"{upload.name!r} is the name of a shipped workflow; choose another"
            raise ApiError(409, "name_taken", message, param="body.name")
        workflow = service.library.check_workflow(caller.tenant, upload.name, upload.text)
        service.library.add_workflow(caller.tenant, upload.name, upload.text)
        return _details(workflow, upload.name, "uploaded")

    return await asyncio.to_thread(keep)


@router.delete(
    "/v1/workflows/{name}", status_code=204, dependencies=[WRITE], responses=documented(404)
)
async def delete_workflow(name: WorkflowName, service: ServiceDep, caller: CallerDep) -> Response:
    """Delete one of the tenant's workflows; runs that were submitted with it are not touched."""
    _require_uploads(service)
    await asyncio.to_thread(service.library.remove_workflow, caller.tenant, name)
    return Response(status_code=204)


def _require_uploads(service: Service) -> None:
    if not service.settings.allow_uploads:
        message = "this server takes no uploads (RAGWRIGHT_ALLOW_UPLOADS)"
        raise ApiError(403, "uploads_disabled", message)


@functools.cache
def _shipped(name: str) -> Workflow:
    return load_workflow(name)


def _row(workflow: Workflow, name: str, origin: Literal["shipped", "uploaded"]) -> Row:
    return Row(name=name, description=workflow.spec.description, origin=origin)


def _details(workflow: Workflow, name: str, origin: Literal["shipped", "uploaded"]) -> Details:
    return Details(
        name=name,
        description=workflow.spec.description,
        origin=origin,
        sha256=workflow.sha256,
        text=workflow.text,
        mermaid=mermaid(workflow.spec),
        inputs=inputs_schema(workflow.spec.inputs),
        outputs=list(workflow.spec.outputs),
    )


def inputs_schema(specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """JSON Schema of the inputs of a run."""
    properties = {name: _input_schema(spec) for name, spec in specs.items()}
    required = [name for name, spec in specs.items() if spec.required]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _input_schema(spec: InputSpec) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": TYPES.get(spec.type, spec.type)}
    choices = spec.choices
    if not spec.required and spec.default is None:
        schema["type"] = [schema["type"], "null"]
        choices = choices and [*choices, None]
    elif spec.type == "string" and spec.required:
        schema["pattern"] = r"\S"
    about = {
        "description": spec.description or None,
        "enum": choices,
        "minimum": spec.minimum,
        "maximum": spec.maximum,
    }
    schema |= {name: value for name, value in about.items() if value is not None}
    if not spec.required:
        schema["default"] = spec.default
    return schema
