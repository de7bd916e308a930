"""A private server and a fleet of worker processes, and the storm that breaks over them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from api.jobs.embedded import EmbeddedServer
from api.jobs.errors import QueueUnavailable
from api.jobs.job import Job, JobEvent
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from tests.house.source import ROOT
from workflows.runs import RunOrder, prepare
from workflows.store import RunManifest

COUNT = """
name: count
inputs: {to: {type: integer, default: 4}}
state: {n: 0, seen: []}
nodes:
  add: {use: set, with: {values: {n: "${state.n + 1}", seen: "${state.seen + [state.n]}"}}}
edges:
  - {from: start, to: add}
  - {from: add, when: "state.n < inputs.to", to: add}
  - {from: add, to: end}
outputs: {n: "${state.n}", seen: "${state.seen}"}
limits: {steps: 5000}
"""
"""Counts step by step; each step's effect stands in the result and in the job's events."""


@dataclass
class Site:
    """Where jobs are kept and run in a test: server, settings, home."""

    server: EmbeddedServer
    settings: Settings
    home: Path
    workflow: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of this site's workers."""
        postgres = self.settings.postgres_url
        return {
            **os.environ,
            **({} if postgres is None else {"RAGWRIGHT_POSTGRES_URL": postgres}),
            "RAGWRIGHT_NAMESPACE": self.settings.namespace,
            "PYTHONPATH": str(ROOT),
            "RAGWRIGHT_HOME": str(self.home),
            "RAGWRIGHT_REDIS_URL": self.server.url,
            "RAGWRIGHT_LEASE": str(self.settings.lease),
            "RAGWRIGHT_DRAIN": str(self.settings.drain),
        }

    def order(self, to: int, run_id: str | None = None) -> RunManifest:
        """A run that counts to a number."""
        return prepare(RunOrder(str(self.workflow), {"to": to}, run_id=run_id))


@contextmanager
def site(folder: Path, binary: Path | None = None, **settings: Any) -> Iterator[Site]:
    """A server of its own under a folder, ended with the test."""
    home = folder / "home"
    workflow = folder / "count.yaml"
    workflow.write_text(COUNT, encoding="utf-8")
    with EmbeddedServer(home / "redis", binary) as server:
        yield Site(server, Settings(redis_url=server.url, **settings), home, workflow)


class Fleet:
    """Workers of a site; `pids` are those that should be alive."""

    def __init__(self, place: Site, workers: int, threads: int = 2) -> None:
        self.pids: list[int] = []
        with (place.home / "workers.log").open("ab") as lines:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.nursery", str(threads)],
                cwd=ROOT,
                env=place.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=lines,
            )
        for _ in range(workers):
            self.start()

    def start(self) -> int:
        """One worker more; its process id."""
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.write(b"start\n")
        self._nursery.stdin.flush()
        self.pids.append(int(self._nursery.stdout.readline()))
        return self.pids[-1]

    def kill(self, pid: int) -> None:
        """SIGKILL a worker."""
        self.pids.remove(pid)
        os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._nursery.communicate(timeout=30)


@dataclass(frozen=True)
class Storm:
    """What happens to how many jobs; kills come as jobs are done, at seeded moments."""

    jobs: int = 200
    worker_kills: int = 25
    server_kills: int = 3
    workers: int = 3
    threads: int = 2
    most_steps: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs that were accepted."""

    jobs: Mapping[str, Job]
    events: Mapping[str, Sequence[JobEvent]]
    expected: Mapping[str, int]
    seconds: float

    @property
    def lost(self) -> list[str]:
        """Accepted jobs without the right result."""
        return [
            name
            for name, to in self.expected.items()
            if name not in self.jobs
            or self.jobs[name].state.value != "completed"
            or (self.jobs[name].result or {})["outputs"] != {"n": to, "seen": list(range(to))}
        ]

    @property
    def doubled(self) -> list[str]:
        """Jobs that ended more than once, or in which a step counts twice."""
        return [name for name in self.jobs if self._ends(name) > 1 or not self._steps_once(name)]

    @property
    def reruns(self) -> int:
        """Attempts beyond the first of each job."""
        return sum(job.attempt - 1 for job in self.jobs.values())

    def _ends(self, name: str) -> int:
        ends = {"completed", "failed", "cancelled"}
        return sum(event.data.get("state") in ends for event in self.events[name])

    def _steps_once(self, name: str) -> bool:
        steps = (self.jobs[name].result or {}).get("steps", [])
        counted = [step["task"] for step in steps if not step.get("superseded")]
        return len(counted) == len(set(counted)) == self.expected[name]


async def storm(place: Site, plan: Storm) -> Outcome:
    """Submit jobs while workers and server are killed and started again, until all rest."""
    chance = random.Random(plan.seed)
    expected: dict[str, int] = {}
    began = time.monotonic()
    with Fleet(place, plan.workers, plan.threads) as fleet:
        async with RedisQueue.open(place.settings) as queue:
            killer = asyncio.create_task(_kill(place, plan, fleet, queue, chance))
            try:
                for number in range(plan.jobs):
                    to = chance.randint(2, plan.most_steps)
                    expected[await _submit(place, queue, number, to)] = to
                jobs = {name: await _rested(queue, name) for name in expected}
                await killer
            finally:
                killer.cancel()
            events = {name: [e async for e in queue.events(name)] for name in expected}
    return Outcome(jobs, events, expected, time.monotonic() - began)


async def _submit(place: Site, queue: RedisQueue, number: int, to: int) -> str:
    """Submit until it is accepted, as a client does: under one idempotency key."""
    order = await asyncio.to_thread(place.order, to)
    while True:
        try:
            return (await queue.submit(order, key=f"job {number}", max_attempts=1)).id
        except QueueUnavailable:
            await asyncio.sleep(0.1)


async def _rested(queue: RedisQueue, name: str) -> Job:
    while True:
        try:
            return await queue.wait(name, seconds=120)
        except QueueUnavailable:
            await asyncio.sleep(0.1)


async def _kill(
    place: Site, plan: Storm, fleet: Fleet, queue: RedisQueue, chance: random.Random
) -> None:
    """Each kill waits for its share of the jobs to be done, then for a random moment more."""
    kills = ["worker"] * plan.worker_kills + ["server"] * plan.server_kills
    chance.shuffle(kills)
    for number, kind in enumerate(kills):
        share = plan.jobs * number // (len(kills) + 1)
        while await _done(queue) < share:
            await asyncio.sleep(0.02)
        await asyncio.sleep(chance.uniform(0, 0.2))
        if kind == "server":
            assert place.server.pid is not None
            os.kill(place.server.pid, signal.SIGKILL)
        else:
            fleet.kill(chance.choice(fleet.pids))
            fleet.start()


async def _done(queue: RedisQueue) -> int:
    try:
        done: int = await queue.client.zcard(f"{queue.settings.namespace}:done")
    except Exception:  # the server was just killed
        return 0
    return done
