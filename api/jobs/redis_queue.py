"""The job queue over Redis: records, events, leases and cancel flags are ours, in one script.

Every change is one call of `queue.lua`, so none is ever half done. A job is accepted together with
its place in the outbox, from which its message is sent (`api.jobs.transport`) by whoever
submitted it or, should that one be gone, by any worker's janitor.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import orjson

from api.jobs.errors import IdempotencyConflict, JobFinal, QueueFull
from api.jobs.job import RESTING, Claim, Job, JobEvent, JobState, Priority
from api.jobs.link import FAILURES, commands, durability, reads, unavailable
from api.jobs.orders import changes
from api.jobs.records import (
    digest,
    fields,
    key_digest,
    manifest_text,
    optional,
    read_claim,
    read_job,
    text,
)
from api.jobs.script import Script
from api.jobs.transport import PRIORITIES, JobBroker, Sender, broker_space
from api.settings import Settings
from workflows.errors import WorkflowInputError
from workflows.store import RunManifest

RETRY_SECONDS = 1.0
"""Wait before the second try of a run that failed; it doubles each time, up to RETRY_CEILING."""
RETRY_CEILING = 60.0

MOST_LOSSES = 10
"""Workers that one job may lose before it counts as what kills them, and fails."""

LOST_MESSAGE_SECONDS = 2.0
"""Age from which a sent message that the transport no longer holds is sent again."""

PAGE = 200
"""Most jobs in one page of a list."""

EVENT_ID = re.compile(r"\d{1,20}(-\d{1,20})?")

_STATES = {
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}


class RedisQueue:
    """Implements `api.jobs.queue.JobQueue` over one Redis server.

    `url` overrides `settings.redis_url`. Raises QueueUnavailable where the server cannot be
    reached for some seconds or refuses; a restart is waited out.
    """

    def __init__(self, settings: Settings, url: str | None = None) -> None:
        chosen = url or settings.redis_url
        if chosen is None:
            raise WorkflowInputError(
                "no job queue is set; set RAGWRIGHT_REDIS_URL, or start one here with: "
                "ragwright serve --embedded"
            )
        self.settings = settings
        self.url = chosen
        self.client = commands(chosen)
        self._reads = reads(chosen)
        self._script = Script(self.client, chosen, settings.namespace)
        self.broker = JobBroker(chosen, settings.namespace)
        self._sender = Sender(self.broker, self.mark_sent)
        self._keep = math.ceil(settings.retention) + 3600

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, url: str | None = None) -> AsyncIterator[RedisQueue]:
        """A queue that is closed in the end, its messages sent."""
        queue = cls(settings, url)
        try:
            yield queue
        finally:
            await queue.close()

    async def close(self) -> None:
        """Send what is still to be sent and close all connections."""
        async with AsyncExitStack() as ends:  # each, whatever becomes of the others
            ends.callback(self.broker.client.close)
            ends.push_async_callback(self._reads.aclose)
            ends.push_async_callback(self.client.aclose)
            await self._sender.flush()

    async def check(self) -> str | None:
        """Reach the server, or raise QueueUnavailable; a warning where it keeps nothing on disk."""
        try:
            await self.client.ping()
            return await durability(self.client)
        except FAILURES as error:
            raise unavailable(error, self.url) from None

    async def identity(self) -> str:
        """A name that no other queue has, and that stays while the server keeps its data."""
        name = self._script.key("identity")
        try:
            await self.client.set(name, secrets.token_hex(8), nx=True)
            found: str = await self.client.get(name)
        except FAILURES as error:
            raise unavailable(error, self.url) from None
        return found

    # What an owner does.

    async def submit(
        self,
        manifest: RunManifest,
        *,
        tenant: str = "",
        priority: Priority = "normal",
        key: str | None = None,
        max_attempts: int = 3,
    ) -> Job:
        """Accept a run; see `JobQueue.submit`. Raises WorkflowInputError for one too large."""
        if priority not in PRIORITIES:
            raise WorkflowInputError(f"priority {priority!r} must be one of {PRIORITIES}")
        if max_attempts < 1:
            raise WorkflowInputError(f"max_attempts {max_attempts} must be at least 1")
        answer, *facts = await self._script(
            "submit",
            manifest.run_id,
            tenant,
            priority,
            manifest_text(manifest, self.settings.max_body),
            max_attempts,
            "" if key is None else key_digest(tenant, key),
            digest(manifest, priority, max_attempts),
            self.settings.max_queued,
        )
        if answer == "conflict":
            raise IdempotencyConflict(
                f"the idempotency key stands for job {facts[0]} with another order; choose another"
            )
        if answer == "taken":
            raise WorkflowInputError(f"a job {manifest.run_id!r} exists; choose another run id")
        if answer == "full":
            raise QueueFull(
                f"the queue holds {facts[0]} jobs, as many as it may (RAGWRIGHT_MAX_QUEUED); "
                "try again later"
            )
        job = read_job(fields(facts[0]))
        if answer == "accepted":
            self._sender.put((job.id, job.priority))
        return job

    async def get(self, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it stands; raises UnknownJob."""
        return read_job(await self._script.record(job_id, tenant))

    async def list(
        self,
        *,
        tenant: str | None = None,
        state: JobState | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Jobs, newest first, and the cursor of the next page or None."""
        if not 1 <= limit <= PAGE:
            raise WorkflowInputError(f"limit {limit} must be from 1 to {PAGE}")
        if cursor is not None and not re.fullmatch(r"\d{1,15}", cursor):
            raise WorkflowInputError(f"cursor {cursor!r} is none that a list gave")
        parts = ["index"]
        parts += ["state", state.value] if state is not None else []
        if tenant is not None:
            parts += [tenant] if state is not None else ["tenant", tenant]
        below = "+inf" if cursor is None else f"({cursor}"
        records, more = await self._script.page(self._script.key(*parts), below, limit)
        return [read_job(record) for record in records], more

    async def counts(self) -> Mapping[JobState, int]:
        """How many jobs of all tenants are in each state."""
        try:
            async with self.client.pipeline(transaction=False) as pipe:
                for state in JobState:
                    pipe.zcard(self._script.key("index", "state", state.value))
                return dict(zip(JobState, await pipe.execute(), strict=True))
        except FAILURES as error:
            raise unavailable(error, self.url) from None

    async def cancel(self, job_id: str, *, tenant: str | None = None) -> Job:
        """End a job; raises JobFinal where it has ended already."""
        await self._script.record(job_id, tenant)
        answer = await self._script("cancel", job_id, self._keep)
        if answer == "final":
            job = await self.get(job_id)
            raise JobFinal(f"job {job_id} is {job.state.value} already; nothing is left to cancel")
        return read_job(fields(answer))

    async def resume(
        self,
        job_id: str,
        *,
        tenant: str | None = None,
        answers: Mapping[str, Any] | None = None,
        budget: Mapping[str, float] | None = None,
    ) -> Job:
        """Queue a WAITING job with its answers, or an INTERRUPTED one with a higher budget."""
        record = await self._script.record(job_id, tenant)
        job = read_job(record)
        given, raised = changes(job, read_claim(record).answers, answers, budget)
        answer = await self._script(
            "resume", job_id, job.state.value, text(given, "an answer"), optional(raised)
        )
        return self._queued_again(answer, job_id, "waits for no answer and no budget any more")

    async def retry(self, job_id: str, *, tenant: str | None = None) -> Job:
        """Queue a failed job again at its last finished step, its attempts counted from zero."""
        record = await self._script.record(job_id, tenant)
        answer = await self._script("retry", job_id)
        return self._queued_again(answer, job_id, f"is {record['state']}; only failed jobs retry")

    def _queued_again(self, answer: Any, job_id: str, problem: str) -> Job:
        if answer == "changed":
            raise JobFinal(f"job {job_id} {problem}")
        job = read_job(fields(answer))
        self._sender.put((job.id, job.priority))
        return job

    async def events(
        self, job_id: str, *, tenant: str | None = None, after: str = "0"
    ) -> AsyncGenerator[JobEvent]:
        """What happened after an event id, then what happens, until the job rests."""
        if not EVENT_ID.fullmatch(after):
            raise WorkflowInputError(f"event id {after!r} is none of a job's events")
        await self._script.record(job_id, tenant)
        name = self._script.key("job", job_id)
        while True:
            try:
                state = await self.client.hget(name, "state")
                resting = state is None or JobState(state) in RESTING
                found = await self._read(job_id, after, block=None if resting else 1000)
            except FAILURES as error:
                raise unavailable(error, self.url) from None
            for event in found:
                yield event
                after = event.id
            if resting and not found:
                return

    async def wait(
        self, job_id: str, *, tenant: str | None = None, seconds: float | None = None
    ) -> Job:
        """The job when it rests; raises TimeoutError."""
        await self._script.record(job_id, tenant)
        try:
            latest = await self.client.xrevrange(self._script.key("events", job_id), count=1)
        except FAILURES as error:
            raise unavailable(error, self.url) from None
        after = latest[0][0] if latest else "0"
        async with asyncio.timeout(seconds), aclosing(self.events(job_id, after=after)) as events:
            async for _ in events:
                pass
        return await self.get(job_id, tenant=tenant)

    async def _read(self, job_id: str, after: str, block: int | None) -> Sequence[JobEvent]:
        stream = self._script.key("events", job_id)
        client = self.client if block is None else self._reads
        answer = await client.xread({stream: after}, count=500, block=block)
        if isinstance(answer, dict):  # RESP3 gives a mapping, RESP2 pairs
            entries = [entry for part in answer.get(stream, ()) for entry in part]
        else:
            entries = [entry for _, part in answer or () for entry in part]
        return [JobEvent(name, orjson.loads(values["e"])) for name, values in entries]

    # What a worker does.

    async def claim(self, job_id: str, worker: str) -> Claim | None:
        """Take a queued job; `worker` names this very claim, so that it can be asked for twice."""
        record = await self._script("claim", job_id, worker, self.settings.lease)
        return read_claim(fields(record)) if record else None

    async def renew(self, claim: Claim) -> bool:
        """Prolong the lease; True while nobody asked to cancel. Raises Fenced."""
        return await self._check(claim, str(self.settings.lease))

    async def wanted(self, claim: Claim) -> bool:
        """As `renew`, but the lease stays as it is: a cheap look, for often."""
        return await self._check(claim, "")

    async def _check(self, claim: Claim, lease: str) -> bool:
        found = await self._script.held("check", claim.job.id, claim.fence, lease)
        return bool(found == "go on")

    async def append(self, claim: Claim, batch: int, events: Sequence[bytes]) -> None:
        """Write events (JSON) of an attempt, whose batches count from 1; raises Fenced.

        A batch that is written again, because its answer was lost, changes nothing.
        """
        await self._script.held("append", claim.job.id, claim.fence, batch, *events)

    async def history(self, job_id: str) -> Sequence[Mapping[str, Any]]:
        """The data of all events so far."""
        found: list[Mapping[str, Any]] = []
        after = "0"
        try:
            while page := await self._read(job_id, after, block=None):
                found += [event.data for event in page]
                after = page[-1].id
        except FAILURES as error:
            raise unavailable(error, self.url) from None
        return found

    async def finish(self, claim: Claim, result: Mapping[str, Any]) -> Job:
        """Write the result of an attempt and what state follows from it; raises Fenced."""
        asks = result.get("asks")
        other = JobState.WAITING if asks else JobState.INTERRUPTED
        state = _STATES.get(result["status"], other)
        written = (optional(result), optional(asks or None), optional(result.get("error")))
        return await self._end(claim, "finish", state.value, *written, self._keep)

    async def give_up(
        self,
        claim: Claim,
        error: Mapping[str, str],
        *,
        retry: bool,
        result: Mapping[str, Any] | None = None,
    ) -> Job:
        """End an attempt that broke: queued again with back-off, or FAILED; raises Fenced.

        `result` is what the attempt had; it is kept where no other follows.
        """
        return await self._end(
            claim,
            "give_up",
            optional(error),
            int(retry),
            RETRY_SECONDS,
            RETRY_CEILING,
            optional(result),
            self._keep,
        )

    async def release(self, claim: Claim) -> Job:
        """Give a job back unharmed (a worker that drains): queued again at once; raises Fenced."""
        job = await self._end(claim, "release", self._keep)
        if job.state is JobState.QUEUED:
            self._sender.put((job.id, job.priority))
        return job

    async def _end(self, claim: Claim, command: str, *facts: Any) -> Job:
        answer = await self._script.held(command, claim.job.id, claim.fence, *facts)
        return read_job(fields(answer))

    # What every worker's janitor does.

    async def mark_sent(self, job_ids: Sequence[str]) -> None:
        """The messages of these jobs were sent; workers that wait are woken."""
        await self._script("sent", *job_ids)

    async def tend(self, limit: int = 500) -> int:
        """One round: queue again what lost its worker, send what is due, remove what is old.

        Returns how much there was to do.
        """
        lost = {
            "code": "worker_lost",
            "message": f"{MOST_LOSSES} workers ended or stood still while they ran this job; see "
            "their logs, then: ragwright jobs retry",
        }
        expired = await self._script("expire", limit, MOST_LOSSES, optional(lost), self._keep)
        due = await self._script(
            "due", limit, broker_space(self.settings.namespace), LOST_MESSAGE_SECONDS
        )
        self._sender.put(*((job_id, priority) for job_id, priority in due))
        old = await self._script("sweep", self.settings.retention, limit)
        return len(expired) + len(due) + len(old)
