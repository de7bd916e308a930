"""Delivery by dramatiq: a message says that a job waits; our record says whether that is so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from api.jobs.errors import QueueUnavailable
from api.jobs.link import FAILURES, messages

log = logging.getLogger(__name__)

PRIORITIES = ("high", "normal", "low")
HEARTBEAT_MS = 5000
MAINTENANCE_CHANCE = 1_000_000
"""In a million: every poll hands out again what the messages of dead workers were."""

LANES = 8
"""Connections that send at once: the server writes to disk what arrives together as one."""

BATCH = 50
"""Messages of a lane after which they are marked."""

Due = tuple[str, str]
"""A job's id and its priority."""


def broker_space(namespace: str) -> str:
    """The namespace of dramatiq's keys, within ours."""
    return f"{namespace}:dramatiq"


class JobBroker(RedisBroker):
    """dramatiq's broker over Redis, without middleware: attempts, limits and results are ours."""

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            client=messages(url),
            middleware=[],
            namespace=broker_space(namespace),
            heartbeat_timeout=HEARTBEAT_MS,
            maintenance_chance=MAINTENANCE_CHANCE,
        )

    def send(self, job_id: str, priority: str) -> None:
        """Send the message of a job; blocks. Raises RedisError."""
        self.enqueue(
            Message(queue_name=priority, actor_name=priority, args=(job_id,), kwargs={}, options={})
        )


class Sender:
    """Sends the messages of accepted jobs in the background and marks them as sent.

    A job is accepted before its message is sent. One whose message is not marked, because this
    process or Redis was gone, is sent again by the janitor of any worker.
    """

    def __init__(self, broker: JobBroker, mark: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._broker = broker
        self._mark = mark
        self._due: list[Due] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, *due: Due) -> None:
        """Send these soon."""
        self._due += due
        if due and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def flush(self) -> None:
        """Return when everything put in was sent, or could not be."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    async def _work(self) -> None:
        while self._due:
            due, self._due = self._due, []
            lanes = (self._send(due[lane::LANES]) for lane in range(LANES))
            # A lane that fails leaves none behind that would still use connections when `flush`
            # has returned and they are closed.
            ends = await asyncio.gather(*lanes, return_exceptions=True)
            if failed := [end for end in ends if end is not None]:
                for error in failed:
                    if not isinstance(error, (*FAILURES, QueueUnavailable)):
                        raise error
                log.warning("messages of %d jobs wait for Redis: %s", len(due), failed[0])

    async def _send(self, due: Sequence[Due]) -> None:
        for at in range(0, len(due), BATCH):
            part = due[at : at + BATCH]
            await asyncio.to_thread(self._send_now, part)
            await self._mark([job_id for job_id, _ in part])

    def _send_now(self, due: Sequence[Due]) -> None:
        for job_id, priority in due:
            self._broker.send(job_id, priority)
