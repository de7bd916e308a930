"""What tests of the queue have in common: orders, results, and time that passes at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from api.jobs.job import Claim
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from inference import Usage
from workflows.runtime import RunResult, RunStatus
from workflows.store import RunManifest

T = TypeVar("T")


def order(**facts: Any) -> RunManifest:
    """An order with an id of its own; what it orders is the same unless `facts` differ."""
    given: dict[str, Any] = {
        "run_id": secrets.token_hex(6),
        "workflow": "tally",
        "workflow_file": "tally.yaml",
        "workflow_sha256": "0" * 64,
        "workflow_text": "name: tally",
        "inputs": {"question": "Wie groß?"},
        "seed": 0,
    }
    return RunManifest(**{**given, **facts})


def result(status: str = "completed", **facts: Any) -> dict[str, Any]:
    """The result of an attempt."""
    outputs = {"answer": "42"}
    usage = Usage().to_dict() | {"seconds": 0.0}
    made = RunResult("r", "tally", RunStatus(status), outputs, [], usage)
    return {**made.to_dict(), **facts}


def with_queue(settings: Settings, work: Callable[[RedisQueue], Awaitable[T]]) -> T:
    """What `work` returns, on a queue that is closed afterwards."""

    async def opened() -> T:
        async with RedisQueue.open(settings) as queue:
            return await work(queue)

    return asyncio.run(opened())


async def claimed(queue: RedisQueue, job_id: str) -> Claim:
    """A claim of a job that can be claimed."""
    claim = await queue.claim(job_id, secrets.token_hex(4))
    assert claim is not None
    return claim


async def started(queue: RedisQueue, **facts: Any) -> Claim:
    """A job that was just submitted and claimed."""
    return await claimed(queue, (await queue.submit(order(**facts))).id)


async def pass_lease(queue: RedisQueue, job_id: str) -> None:
    """Let the lease of a running job be over, and the janitor see it."""
    leases = f"{queue.settings.namespace}:leases"
    assert await queue.client.zadd(leases, {job_id: 1}, xx=True, ch=True)
    await queue.tend()


async def pass_wait(queue: RedisQueue, job_id: str) -> None:
    """Let the wait of a job before its next try be over."""
    await queue.client.hset(f"{queue.settings.namespace}:job:{job_id}", "due", 0)
