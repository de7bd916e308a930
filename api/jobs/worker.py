"""The worker process: takes jobs from the queue and runs them, all on one event loop.

dramatiq's worker hands messages to threads; each asks the loop to work on one job and waits.
Engines are shared by all jobs of the process and loaded when a job first needs one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Sequence
from contextlib import nullcontext

import dramatiq

from api.jobs.attempt import Attempt, Traced, forget
from api.jobs.delivery import Gate, WorkBroker
from api.jobs.errors import QueueUnavailable
from api.jobs.job import Claim
from api.jobs.link import FAILURES, TextRedis, reads
from api.jobs.redis_queue import RedisQueue
from api.jobs.transport import PRIORITIES
from workflows.events import Event
from workflows.resources import ResourcePool

log = logging.getLogger(__name__)

TEND_SECONDS = 0.5
"""Time between rounds of the janitor, so that a lost job runs again within lease + 1 s."""

AGAIN_SECONDS = 1.0
"""Wait before Redis is tried again."""

STOP_SHARE = 0.8
"""Part of `drain` in which jobs may end by themselves; the rest is for giving back the others."""

POLL_MS = 200


class Worker:
    """Runs jobs until `drain`; `threads` is how many at once.

    `traced` gives the sink of one attempt, as `api.telemetry.traced` does.
    """

    def __init__(
        self,
        queue: RedisQueue,
        *,
        threads: int = 4,
        queues: Sequence[str] = PRIORITIES,
        traced: Traced = lambda trace: nullcontext(_unheard),
    ) -> None:
        self.queue = queue
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._threads = threads
        self._queues = queues
        self._traced = traced
        self._gate = Gate(threads)
        self._pool = ResourcePool()
        self._queue_id = ""
        self._attempts: set[Attempt] = set()
        self._busy = 0
        self._stopping = False
        self._draining = asyncio.Event()
        self._at_once = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Work until `drain` is called; Redis being away is waited out."""
        await self._reach()
        self._loop = asyncio.get_running_loop()
        broker = WorkBroker(self.queue.url, self.queue.settings.namespace, self._gate, self._queues)
        for name in self._queues:
            declare = dramatiq.actor(
                broker=broker,
                actor_name=name,
                queue_name=name,
                priority=PRIORITIES.index(name),
            )
            declare(self._work_in_thread)
        transport = dramatiq.Worker(
            broker, queues=set(self._queues), worker_threads=self._threads, worker_timeout=POLL_MS
        )
        helpers = [asyncio.create_task(job()) for job in (self._tend, self._listen)]
        transport.start()
        log.info("worker %s takes %d jobs at once from %s", self.name, self._threads, self._queues)
        try:
            await self._draining.wait()
            await self._drain()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await asyncio.to_thread(transport.stop, 5000)
            broker.client.close()
            await asyncio.to_thread(self._pool.close)
            log.info("worker %s has ended", self.name)

    def drain(self) -> None:
        """Take no more jobs, end or give back those at hand, and end; at once if asked again."""
        if self._draining.is_set():
            self._at_once.set()
        self._gate.close()
        self._draining.set()

    async def _reach(self) -> None:
        while True:
            try:
                warning = await self.queue.check()
                self._queue_id = await self.queue.identity()
            except QueueUnavailable as error:
                log.warning("%s; trying again", error)
                if await _within(self._draining, AGAIN_SECONDS):
                    return
                continue
            if warning is not None:
                log.warning("%s", warning)
            return

    async def _drain(self) -> None:
        seconds = self.queue.settings.drain
        if self._busy:
            log.info("draining: %d jobs have %.0f s to end", self._busy, seconds)
        ended = asyncio.create_task(self._idle.wait())
        hurried = asyncio.create_task(self._at_once.wait())
        await asyncio.wait(
            {ended, hurried}, timeout=seconds * STOP_SHARE, return_when=asyncio.FIRST_COMPLETED
        )
        self._stopping = True
        for attempt in list(self._attempts):
            attempt.stop("drain")
        if not await _within(self._idle, seconds * (1 - STOP_SHARE)):
            log.warning("%d jobs did not end; their leases run out", self._busy)
        for task in (ended, hurried):
            task.cancel()

    def _work_in_thread(self, job_id: str) -> None:
        """What dramatiq calls, in one of its threads."""
        asyncio.run_coroutine_threadsafe(self._work(job_id), self._loop).result()

    async def _work(self, job_id: str) -> None:
        if self._draining.is_set():
            return  # its message counts as lost soon, and is sent again to another worker
        self._busy += 1
        self._idle.clear()
        try:
            claim = await self._claim(job_id)
            if claim is not None:
                await self._attempt(claim)
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def _attempt(self, claim: Claim) -> None:
        attempt = Attempt(self.queue, self._queue_id, claim, self._pool, self._traced)
        self._attempts.add(attempt)
        if self._stopping:
            attempt.stop("drain")
        try:
            await attempt.work()
        except Exception:
            log.exception("job %s: its end is not written; its lease runs out", claim.job.id)
        finally:
            self._attempts.discard(attempt)

    async def _claim(self, job_id: str) -> Claim | None:
        token = f"{self.name}:{secrets.token_hex(8)}"
        while True:
            try:
                return await self.queue.claim(job_id, token)
            except QueueUnavailable as error:
                log.warning("job %s cannot be claimed yet: %s", job_id, error)
                if await _within(self._draining, AGAIN_SECONDS):
                    return None

    async def _tend(self) -> None:
        """The janitor: each worker looks after all jobs of the queue."""
        away = False
        while True:
            try:
                await self.queue.tend()
                if away:
                    log.info("Redis answers again")
                away = False
            except QueueUnavailable as error:
                if not away:
                    log.warning("%s; trying again", error)
                away = True
            except Exception:
                log.exception("a round of the janitor broke off; the next one follows")
            await asyncio.sleep(TEND_SECONDS)

    async def _listen(self) -> None:
        """Wake consumers when a message was sent; remove what is kept here of jobs that are over.

        A notice that is missed costs a moment: consumers look by themselves every second.
        """
        client = reads(self.queue.url)
        channel = f"{self.queue.settings.namespace}:notices"
        try:
            while True:
                await self._hear(client.pubsub(), channel)
        finally:
            await client.aclose()

    async def _hear(self, notices: TextRedis, channel: str) -> None:
        """Listen until the connection breaks, and a little longer."""
        try:
            async with notices:
                await notices.subscribe(channel)
                self._gate.wake()
                while True:
                    notice = await notices.get_message(ignore_subscribe_messages=True, timeout=1.0)
                    if notice is not None:
                        await self._heed(notice["data"])
        except FAILURES:
            await asyncio.sleep(AGAIN_SECONDS)
        except Exception:
            log.exception("notices broke off; they are listened to again")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _heed(self, notice: str) -> None:
        what, _, job_id = notice.partition(" ")
        if what == "wake":
            self._gate.wake()
        elif what == "over":
            await asyncio.to_thread(forget, self._queue_id, job_id)


async def serve(worker: Worker) -> None:
    """Run a worker until SIGTERM or SIGINT; a second one gives its jobs back at once."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.drain)
    try:
        await worker.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _unheard(event: Event) -> None:
    """A sink for runs that nobody traces."""


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
