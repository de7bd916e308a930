"""A job: a run that was accepted, its states, and what is promised in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

Priority = Literal["high", "normal", "low"]


class JobState(StrEnum):
    """Where a job stands; only the queue changes it."""

    QUEUED = "queued"
    """Accepted and kept; a worker will start it."""
    RUNNING = "running"
    """A worker holds it and renews its lease; without renewal it is queued again."""
    WAITING = "waiting"
    """An `interrupt` node asks something; it goes on when `resume` brings the answer."""
    INTERRUPTED = "interrupted"
    """Stopped by its budget, with a partial result; `resume` goes on under a higher one."""
    COMPLETED = "completed"
    """Ended with its result."""
    FAILED = "failed"
    """Its last try failed; it lies in the dead-letter list until `retry` or retention."""
    CANCELLED = "cancelled"
    """Ended by its owner."""


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
"""States that a job leaves only by `retry`, and only from FAILED."""

RESTING = TERMINAL | {JobState.WAITING, JobState.INTERRUPTED}
"""States in which nothing happens until somebody asks for it."""


@dataclass(frozen=True)
class Job:
    """A job as its owner sees it; times are seconds since the epoch.

    `id` is the run's id too. `manifest` is what the run was submitted with
    (`workflows.store.RunManifest` as a mapping, the workflow's text included), `attempt` counts
    its starts, `fence` its claims. `asks` is what a WAITING job wants to know; `result` is the
    object that `ragwright run --json` prints.
    """

    id: str
    tenant: str
    state: JobState
    priority: Priority
    manifest: Mapping[str, Any]
    submitted_at: float
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int = 0
    max_attempts: int = 3
    fence: int = 0
    cancel_requested: bool = False
    asks: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None

    def to_dict(self, *, brief: bool = False) -> dict[str, Any]:
        """Plain JSON object; the workflow's text is left out, with `brief` also the result."""
        facts = asdict(self)
        manifest = facts.pop("manifest")
        facts["workflow"] = manifest["workflow"]
        facts["inputs"] = manifest["inputs"]
        facts["state"] = self.state.value
        facts["asks"] = [dict(ask) for ask in self.asks]
        if brief:
            facts.pop("result")
        return facts


@dataclass(frozen=True)
class JobEvent:
    """One entry of a job's progress: `id` is where a reader goes on after it."""

    id: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A worker's right to work on a job, good while `fence` is the job's latest.

    `answers` are those that `resume` brought, by the id of what was asked.
    """

    job: Job
    fence: int
    answers: Mapping[str, Any] = field(default_factory=dict)
