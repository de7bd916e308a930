"""The contract of the job queue; `api.jobs.redis_queue` keeps it over Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from api.jobs.job import Claim, Job, JobEvent, JobState, Priority
from workflows.store import RunManifest


class JobQueue(Protocol):
    """Accepts runs, hands them to workers, and keeps what becomes of them.

    `tenant` names the owner; a job of somebody else is unknown (UnknownJob), never forbidden.
    """

    async def submit(
        self,
        manifest: RunManifest,
        *,
        tenant: str = "",
        priority: Priority = "normal",
        key: str | None = None,
        max_attempts: int = 3,
    ) -> Job:
        """Accept a run; when this returns, the job survives any kill of worker or server.

        The same idempotency `key` of a tenant gives the same job again, and raises
        IdempotencyConflict where the order differs. Raises QueueFull, QueueUnavailable.
        """
        ...

    async def get(self, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it stands; raises UnknownJob. `tenant` None means whoever owns it."""
        ...

    async def list(
        self,
        *,
        tenant: str | None = None,
        state: JobState | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Jobs, newest first, and the cursor of the next page or None."""
        ...

    async def counts(self) -> Mapping[JobState, int]:
        """How many jobs of all tenants are in each state."""
        ...

    async def cancel(self, job_id: str, *, tenant: str | None = None) -> Job:
        """End a job: at once where no worker holds it, else within a decode step of the flag.

        Raises JobFinal where it has ended already.
        """
        ...

    async def resume(
        self,
        job_id: str,
        *,
        tenant: str | None = None,
        answers: Mapping[str, Any] | None = None,
        budget: Mapping[str, float] | None = None,
    ) -> Job:
        """Queue a WAITING job with its answers, or an INTERRUPTED one with a higher budget."""
        ...

    async def retry(self, job_id: str, *, tenant: str | None = None) -> Job:
        """Queue a job of the dead-letter list again, its attempts counted from zero."""
        ...

    def events(
        self, job_id: str, *, tenant: str | None = None, after: str = "0"
    ) -> AsyncIterator[JobEvent]:
        """What happened after an event id, then what happens, until the job rests."""
        ...

    async def wait(
        self, job_id: str, *, tenant: str | None = None, seconds: float | None = None
    ) -> Job:
        """The job when it rests; raises TimeoutError."""
        ...

    async def claim(self, job_id: str, worker: str) -> Claim | None:
        """Take a queued job; None where there is nothing (left) to do with it."""
        ...

    async def renew(self, claim: Claim) -> bool:
        """Prolong the lease; True while nobody asked to cancel. Raises Fenced."""
        ...

    async def finish(self, claim: Claim, result: Mapping[str, Any]) -> Job:
        """Write the result of an attempt and what state follows from it; raises Fenced."""
        ...

    async def give_up(self, claim: Claim, error: Mapping[str, str], *, retry: bool) -> Job:
        """End an attempt that broke: queued again with back-off, or FAILED; raises Fenced."""
        ...

    async def release(self, claim: Claim) -> Job:
        """Give a job back unharmed (a worker that drains): queued again at once; raises Fenced."""
        ...
