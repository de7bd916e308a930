"""What an owner may change of a job that waits: answers and limits, checked before they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from api.jobs.errors import JobFinal
from api.jobs.job import Job, JobState
from inference import Budget
from inference.suggest import nearest
from workflows.answers import check_answers
from workflows.errors import WorkflowInputError


def changes(
    job: Job,
    before: Mapping[str, Any],
    answers: Mapping[str, Any] | None,
    budget: Mapping[str, float] | None,
) -> tuple[dict[str, Any], dict[str, float] | None]:
    """All answers given so far and the limits that now hold; raises WorkflowInputError.

    `before` are the answers of earlier resumes.
    """
    if job.state not in (JobState.WAITING, JobState.INTERRUPTED):
        raise JobFinal(f"job {job.id} is {job.state.value}; it waits for nothing")
    if job.state is JobState.WAITING and not answers:
        raise WorkflowInputError(f"job {job.id} waits for answers to {_ids(job)}; give them")
    if job.state is JobState.INTERRUPTED and not budget:
        raise WorkflowInputError(f"job {job.id} has spent its budget; give a higher one")
    given = check_answers(job.asks, answers or {})
    return {**before, **given}, _limits(job, budget or {})


def _limits(job: Job, budget: Mapping[str, float]) -> dict[str, float] | None:
    held: dict[str, float] = dict(job.manifest["budget"] or {})
    kinds = {field.name for field in fields(Budget)}
    for name, limit in budget.items():
        if name not in kinds:
            raise WorkflowInputError(f"unknown budget {name!r}; {nearest(name, kinds)}")
        if limit <= held.get(name, 0):
            raise WorkflowInputError(
                f"budget {name} {limit} must be higher than the {held.get(name, 0)} of before"
            )
    return {**held, **budget} or None


def _ids(job: Job) -> str:
    return ", ".join(repr(str(ask["id"])) for ask in job.asks) or "nothing"
