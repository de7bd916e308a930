"""Runs: submit, follow, cancel, answer, retry."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import Header, Path, Query, Request, Response

from api import telemetry
from api.http import sse
from api.http.deps import CallerDep, ServiceDep, need
from api.http.door import Caller
from api.http.errors import ApiError, documented
from api.http.keys import Scope
from api.http.routes.bodies import Resume, Run, RunPage, RunRequest
from api.http.routing import router as build
from api.http.service import Service
from api.jobs.job import JobState
from workflows.loading import shipped_workflows
from workflows.runs import RunOrder, prepare
from workflows.store import RunManifest

MAX_INPUTS = 2**20
"""Bytes of a run's inputs as JSON; documents go into an index."""

router = build("runs")
router.dependencies.append(need(Scope.RUNS))

RunId = Annotated[str, Path(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$"),
]


@router.post("/v1/runs", status_code=202, responses=documented(404, 409))
async def submit_run(
    order: RunRequest,
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Run:
    """Accept a run, which survives any kill from then on.

    The same `Idempotency-Key` gives the same run again, and 409 with another body. A W3C
    `traceparent` becomes the parent of the run's spans.
    """
    manifest = await asyncio.to_thread(manifest_of, service, caller, order)
    manifest = replace(manifest, trace=telemetry.carrier(request.headers))
    job = await service.queue.submit(
        manifest,
        tenant=caller.tenant,
        priority=order.priority,
        key=idempotency_key,
        max_attempts=order.max_attempts,
    )
    return Run.of(job)


@router.get("/v1/runs")
async def list_runs(
    service: ServiceDep,
    caller: CallerDep,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")
    ] = None,
) -> RunPage:
    """The tenant's runs, newest first, without their results."""
    jobs, following = await service.queue.list(
        tenant=caller.tenant, state=state, limit=limit, cursor=cursor
    )
    return RunPage(data=[Run.of(job, brief=True) for job in jobs], next=following)


@router.get("/v1/runs/{run_id}", responses=documented(404))
async def get_run(run_id: RunId, service: ServiceDep, caller: CallerDep) -> Run:
    """A run as it stands: its state, what it asks, its result."""
    return Run.of(await service.queue.get(run_id, tenant=caller.tenant))


@router.post("/v1/runs/{run_id}/cancel", responses=documented(404, 409))
async def cancel_run(run_id: RunId, service: ServiceDep, caller: CallerDep) -> Run:
    """End a run: at once, or within a decode step where a worker holds it."""
    return Run.of(await service.queue.cancel(run_id, tenant=caller.tenant))


@router.post("/v1/runs/{run_id}/resume", responses=documented(404, 409))
async def resume_run(run_id: RunId, resume: Resume, service: ServiceDep, caller: CallerDep) -> Run:
    """Go on: a waiting run with the answers to what it asks, an interrupted one with a budget."""
    require_small("answers", resume.answers)
    job = await service.queue.resume(
        run_id,
        tenant=caller.tenant,
        answers=resume.answers or None,
        budget=resume.budget.limits() if resume.budget else None,
    )
    return Run.of(job)


@router.post("/v1/runs/{run_id}/retry", responses=documented(404, 409))
async def retry_run(run_id: RunId, service: ServiceDep, caller: CallerDep) -> Run:
    """Queue a failed run again."""
    return Run.of(await service.queue.retry(run_id, tenant=caller.tenant))


@router.get(
    "/v1/runs/{run_id}/events",
    response_class=Response,
    responses={
        **documented(404),
        200: {
            "description": "events, each with id, event and data",
            "content": {sse.EventStream.media_type: {"schema": sse.EVENT}},
        },
    },
)
async def run_events(
    run_id: RunId,
    service: ServiceDep,
    caller: CallerDep,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """What the run did after `Last-Event-ID` and does, as server-sent events until it rests.

    The last event is `end` with the state; a stream that stops without one goes on where the
    reader left off, when it comes back with the last id it saw.
    """
    after = sse.resume_point(last_event_id)
    await service.queue.get(run_id, tenant=caller.tenant)

    async def end() -> dict[str, str]:
        job = await service.queue.get(run_id, tenant=caller.tenant)
        return {"state": job.state.value}

    events = service.queue.events(run_id, tenant=caller.tenant, after=after)
    return sse.EventStream(sse.frames(events, end, service.draining))


def manifest_of(service: Service, caller: Caller, order: RunRequest) -> RunManifest:
    """The checked order; reads files, so it runs in a thread."""
    require_small("inputs", order.inputs)
    tenant, workflow = caller.tenant, order.workflow
    if workflow not in shipped_workflows():
        workflow = str(service.library.workflow(tenant, workflow))
    order.require_known_model()
    return prepare(
        RunOrder(
            workflow,
            inputs=order.inputs,
            index=service.library.index(tenant, order.index) if order.index else None,
            graph=service.library.graph(tenant, order.graph) if order.graph else None,
            engine=order.engine,
            model=order.model,
            seed=order.seed,
            budget=order.budget.limits() if order.budget else None,
            tenant=tenant,
        )
    )


def require_small(name: str, value: Any) -> None:
    """Raises ApiError 422 for more than `MAX_INPUTS` bytes of JSON."""
    size = len(orjson.dumps(value))
    if size > MAX_INPUTS:
        message = f"{name}: {size} bytes of JSON, and {MAX_INPUTS} are allowed; use an index"
        raise ApiError(422, "inputs_too_large", message, param=f"body.{name}")
