"""One attempt at a job: a claim becomes a run, its lease is kept, its end is written down."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver

from api.errors import BAD_INPUT
from api.jobs.errors import QueueUnavailable
from api.jobs.job import Claim, Job, JobState
from api.jobs.journal import StreamJournal
from api.jobs.records import JOB_ID
from api.jobs.redis_queue import RedisQueue
from inference import Usage
from workflows.checkpoints import discard, postgres_saver, sqlite_saver
from workflows.events import Sink
from workflows.keeping import Fenced, Keeping, NotKept
from workflows.past import past_of
from workflows.resources import ResourcePool
from workflows.runs import perform
from workflows.runtime import RunResult, RunStatus
from workflows.store import RunManifest, runs_home

log = logging.getLogger(__name__)

Reason = Literal["cancel", "drain", "fenced"]
T = TypeVar("T")

Traced = Callable[[], AbstractContextManager[Sink]]
"""Gives a sink that hears one attempt, from its begin to its end."""

LOOK_SECONDS = 0.25
"""Time between looks at the cancel flag."""

AGAIN_SECONDS = 0.5
"""Wait before Redis, or a checkpoint file that another process holds, is tried again."""

PASSING = frozenset(
    {
        "inference_error",
        "not_kept",
        "retrieval_error",
        "run_busy",
        "server_timeout",
        "server_unavailable",
        "timeout",
    }
)
"""Codes of failures that may not happen again: such a run gets another try."""


def jobs_home() -> Path:
    """The folder of what this host keeps of jobs while they run, beside the runs."""
    return runs_home().parent / "jobs"


def checkpoints_of(queue_id: str, job_id: str) -> Path:
    """The file of a job's checkpoints on this host; two queues may know the same job id."""
    return jobs_home() / queue_id / job_id / "checkpoints.sqlite"


def forget(queue_id: str, job_id: str) -> None:
    """Remove what this host keeps of a job that is over."""
    if JOB_ID.fullmatch(job_id):
        shutil.rmtree(checkpoints_of(queue_id, job_id).parent, ignore_errors=True)


class Attempt:
    """The work of one claim, from its run to the state that follows."""

    def __init__(
        self,
        queue: RedisQueue,
        queue_id: str,
        claim: Claim,
        pool: ResourcePool,
        traced: Traced,
    ) -> None:
        self._queue = queue
        self._queue_id = queue_id
        self._claim = claim
        self._pool = pool
        self._traced = traced
        self._journal = StreamJournal(queue, claim)
        self._run: asyncio.Task[RunResult] | None = None
        self._reason: Reason | None = None

    def stop(self, reason: Reason) -> None:
        """End the run at its next await, which aborts a generation within a decode step."""
        first, self._reason = self._reason is None, self._reason or reason
        if first and self._run is not None:
            self._run.cancel()  # once: a second would cut short how the first is dealt with

    async def work(self) -> Job | None:
        """Run, and write down what came of it; None where the job is another's by now."""
        job_id = self._claim.job.id
        keeper = asyncio.create_task(self._keep_lease())
        try:
            job = await self._ended()
        except Fenced as error:
            log.warning("%s; what this worker did since is discarded", error)
            return None
        finally:
            keeper.cancel()
        if job.state in (JobState.COMPLETED, JobState.CANCELLED):
            await self._discard()
        log.info("job %s is %s after attempt %d", job_id, job.state.value, job.attempt)
        return job

    async def _discard(self) -> None:
        """Remove the checkpoints of a job that is over; its result stands in its record."""
        if self._queue.settings.postgres_url is None:
            await asyncio.to_thread(forget, self._queue_id, self._claim.job.id)
            return
        try:
            async with self._saver() as saver:
                await discard(saver, self._claim.job.id)
        except (Fenced, NotKept) as error:
            log.warning("job %s: its checkpoints stay: %s", self._claim.job.id, error)

    async def _ended(self) -> Job:
        queue, claim = self._queue, self._claim
        result = None
        try:
            result = await self._result()
        except asyncio.CancelledError:
            if self._reason is None:
                raise
        except (Fenced, QueueUnavailable):
            raise
        except Exception as error:
            problem, again = _problem(error), not isinstance(error, BAD_INPUT)
            defect = not hasattr(error, "code")
            log.warning("job %s broke off: %s", claim.job.id, error, exc_info=defect)
            return await self._insist(lambda: queue.give_up(claim, problem, retry=again))
        if self._reason == "fenced":
            raise Fenced(f"job {claim.job.id} was taken over from claim {claim.fence}")
        cut = result is None or result.status is RunStatus.CANCELLED
        if self._reason == "drain" and cut:
            return await self._insist(lambda: queue.release(claim))
        return await self._conclude(_cancelled(claim) if result is None else result.to_dict())

    async def _conclude(self, result: dict[str, Any]) -> Job:
        """What follows from a result; a failure that may pass is worth another try."""
        queue, claim, error = self._queue, self._claim, result["error"]
        if result["status"] == "failed":
            again = error["code"] in PASSING
            return await self._insist(
                lambda: queue.give_up(claim, error, retry=again, result=result)
            )
        return await self._insist(lambda: queue.finish(claim, result))

    async def _result(self) -> RunResult:
        """What the run came to; a checkpoint file held by a stopped process is waited for."""
        while True:
            self._run = asyncio.create_task(self._perform())
            if self._reason is not None:
                self._run.cancel()
            try:
                return await self._run
            except NotKept as error:
                if "locked" not in str(error.__cause__):
                    raise
                log.warning("job %s: its checkpoints are locked; trying again", self._claim.job.id)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _perform(self) -> RunResult:
        job = self._claim.job
        manifest = RunManifest(**job.manifest)
        past = None
        if self._claim.fence > 1:
            past = past_of(await self._insist(lambda: self._queue.history(job.id)))
        keeping = Keeping(self._journal, self._saver, past, self._claim.answers)
        with self._traced() as sink:
            return await perform(
                manifest, self._pool, keeping, sinks=(sink,), stream_text=True, tenant=job.tenant
            )

    def _saver(self) -> AbstractAsyncContextManager[BaseCheckpointSaver[Any]]:
        job_id, fence, url = (
            self._claim.job.id,
            self._claim.fence,
            self._queue.settings.postgres_url,
        )
        if url is not None:
            return postgres_saver(url, job_id, fence)
        file = checkpoints_of(self._queue_id, job_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        return sqlite_saver(file, fence)

    async def _keep_lease(self) -> None:
        """Renew the lease and look at the cancel flag while the attempt lasts."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            due = time.monotonic() - renewed >= self._queue.settings.lease / 3
            look = self._queue.renew if due else self._queue.wanted
            try:
                wanted = await look(self._claim)
            except QueueUnavailable as error:
                log.warning("job %s: its lease waits: %s", self._claim.job.id, error)
                continue
            except Fenced:
                return self.stop("fenced")
            if due:
                renewed = time.monotonic()
            if not wanted:
                self.stop("cancel")

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of the queue, asked for until Redis is there; asking twice does no harm."""
        while True:
            try:
                return await ask()
            except QueueUnavailable as error:
                log.warning("job %s waits: %s", self._claim.job.id, error)
                await asyncio.sleep(AGAIN_SECONDS)


def _cancelled(claim: Claim) -> dict[str, Any]:
    """The result of a run that was cancelled before it began."""
    job, error = claim.job, {"code": "cancelled", "message": "cancelled"}
    usage = Usage().to_dict() | {"seconds": 0.0}
    workflow = job.manifest["workflow"]
    return RunResult(job.id, workflow, RunStatus.CANCELLED, {}, [], usage, error).to_dict()


def _problem(error: Exception) -> dict[str, str]:
    code = getattr(error, "code", None)
    text = " ".join(str(error).split()) or type(error).__name__
    return {"code": code if isinstance(code, str) else "defect", "message": text}
