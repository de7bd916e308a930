"""Queued jobs: what kills cost, how soon they start, how fast they are accepted.

The peer is dramatiq alone, in the same run on the same kind of server: the transport under ours,
without records, leases and fences. Its jobs sleep where ours compute and keep checkpoints.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from api.jobs.embedded import EmbeddedServer
from api.jobs.redis_queue import RedisQueue
from inference.errors import UnknownName
from inference.suggest import nearest
from tests.bench.figures import Figure, alone
from tests.bench.scripts.dramatiq_peer import SPACE, broker_of, count_actor
from tests.chaos.fleet import Fleet, Site, Storm, site, storm
from tests.house.source import ROOT

PEER = "dramatiq alone"
STORM = Storm()
LEASE = 5.0
"""Of `takeover_seconds`: the time after which dramatiq, too, takes a worker for dead."""

LATE_SECONDS = 10.0
QUEUED = 10_000
SUBMITTERS = 32


def run(*, n: int = 50, only: Collection[str] = ()) -> list[Figure]:
    """The rows named in `only`, or all; `n` is the number of starts that are measured."""
    for name in only:
        if name not in ROWS:
            raise UnknownName(f"unknown row {name!r} of benchmark 'jobs'; {nearest(name, ROWS)}")
    figures: list[Figure] = []
    for name, row in ROWS.items():
        if not only or name in only:
            began = time.perf_counter()
            figures += row(n)
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return figures


def _storm(n: int) -> list[Figure]:
    """Lost and doubled jobs of both under the same kills; the rate at which ours rode them out."""
    with _folder() as folder, site(folder, lease=2.0) as place:
        ours = asyncio.run(storm(place, STORM))
    lost, doubled = _peer_storm(STORM)
    return [
        Figure("lost_jobs", len(ours.lost), "jobs", PEER, lost, n=STORM.jobs),
        Figure("duplicate_results", len(ours.doubled), "jobs", PEER, doubled, n=STORM.jobs),
        Figure("storm_seconds", ours.seconds, "s", n=1),
        Figure("storm_reruns", ours.reruns, "attempts", n=STORM.jobs),
    ]


def _latency(n: int) -> list[Figure]:
    """From the call that submits to the start in an idle worker, one job at a time."""
    with _folder() as folder, site(folder) as place:
        ours = asyncio.run(_starts(place, n))
    with _peer() as (url, client), _peer_workers(url, 1):
        theirs = [_peer_start(url, client, number) for number in range(n + 1)][1:]
    return [_against("start_latency_p50", "ms", [s * 1e3 for s in ours], [s * 1e3 for s in theirs])]


async def _starts(place: Site, n: int) -> list[float]:
    measured = []
    with Fleet(place, 1) as fleet:
        assert fleet.pids
        async with RedisQueue.open(place.settings) as queue:
            for _ in range(n + 1):
                order = place.order(2)
                called = time.time()
                job = await queue.submit(order)
                done = await queue.wait(job.id, seconds=60)
                measured.append((done.started_at or 0) - called)
                await asyncio.sleep(random.Random(len(measured)).uniform(0.05, 0.3))
    return measured[1:]


def _takeover(n: int) -> list[Figure]:
    """From the SIGKILL of a worker to the next start of the job it had."""
    times = max(min(n, 50) // 10, 1)
    with _folder() as folder, site(folder, lease=LEASE) as place:
        ours = asyncio.run(_takeovers(place, times))
    theirs = [_peer_takeover() for _ in range(times)]
    return [_against("takeover_seconds", "s", ours, theirs)]


async def _takeovers(place: Site, times: int) -> list[float]:
    measured = []
    async with RedisQueue.open(place.settings) as queue:
        for _ in range(times):
            with Fleet(place, 1) as fleet:
                job = await queue.submit(place.order(3000))
                async for event in queue.events(job.id):
                    if event.data["type"] == "step_finished":
                        break
                seen = event.id
                fleet.start()
                killed = time.time()
                fleet.kill(fleet.pids[0])
                async for again in queue.events(job.id, after=seen):
                    if again.data.get("attempt") == 2:
                        measured.append(int(again.id.partition("-")[0]) / 1000 - killed)
                        break
                await queue.cancel(job.id)
                await queue.wait(job.id, seconds=60)
    return measured


def _submits(n: int) -> list[Figure]:
    """Jobs accepted in a second, up to 10,000 that wait, by 32 submitters at once."""
    with _folder() as folder, site(folder) as place:
        ours = asyncio.run(_accepted(place))
    with _peer() as (url, _):
        count = count_actor(broker_of(url))
        began = time.perf_counter()
        with ThreadPoolExecutor(SUBMITTERS) as submitters:
            list(submitters.map(lambda number: count.send(str(number), 1), range(QUEUED)))
        theirs = QUEUED / (time.perf_counter() - began)
    return [replace(_against("submit_rate", "jobs/s", [ours], [theirs]), ratio=ours / theirs)]


async def _accepted(place: Site) -> float:
    order = place.order(2)
    orders = [replace(order, run_id=f"job-{number}") for number in range(QUEUED)]
    async with RedisQueue.open(place.settings) as queue:

        async def submitter(lane: int) -> None:
            for order in orders[lane::SUBMITTERS]:
                await queue.submit(order)

        began = time.perf_counter()
        await asyncio.gather(*(submitter(lane) for lane in range(SUBMITTERS)))
        return QUEUED / (time.perf_counter() - began)


ROWS: dict[str, Callable[[int], list[Figure]]] = {
    "storm": _storm,
    "start_latency": _latency,
    "takeover": _takeover,
    "submit_rate": _submits,
}


def _against(name: str, unit: str, ours: list[float], theirs: list[float]) -> Figure:
    """Medians of measurements that are no pairs; a ratio above 1 means that less time is ours."""
    figure = alone(name, unit, ours, PEER)
    peer = statistics.median(theirs)
    return replace(figure, peer_value=peer, ratio=peer / (figure.value or float("nan")))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def _peer() -> Iterator[tuple[str, Redis]]:
    """A server as ours, and a client that waits out its restarts."""
    with _folder() as folder, EmbeddedServer(folder) as server:
        retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), 10)
        client = Redis.from_url(server.url, decode_responses=True, retry=retry)
        yield server.url, client
        client.close()


@contextmanager
def _peer_workers(url: str, number: int) -> Iterator[list[subprocess.Popen[str]]]:
    workers = [_peer_worker(url) for _ in range(number)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _peer_worker(url: str) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.scripts.dramatiq_peer", url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    return worker


def _peer_start(url: str, client: Redis, number: int) -> float:
    broker = broker_of(url)
    count = count_actor(broker)
    called = time.time()
    count.send(f"start {number}", 2)
    begun = _until(client, "begun", number + 1, 30.0)[number]
    time.sleep(random.Random(number).uniform(0.05, 0.3))
    broker.client.close()
    return float(begun.split()[-1]) - called


def _peer_takeover() -> float:
    with _peer() as (url, client), _peer_workers(url, 1) as workers:
        count_actor(broker_of(url)).send("long", 3000)
        _until(client, "begun", 1, 30.0)
        workers.append(_peer_worker(url))
        killed = time.time()
        workers[0].kill()
        again = _until(client, "begun", 2, 120.0)[1]
        return float(again.split()[-1]) - killed


def _peer_storm(plan: Storm) -> tuple[int, int]:
    """Lost and doubled jobs of dramatiq alone under the same kind and number of kills."""
    chance = random.Random(plan.seed)
    kills = ["worker"] * plan.worker_kills + ["server"] * plan.server_kills
    chance.shuffle(kills)
    with _folder() as folder, EmbeddedServer(folder) as server:
        retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), 10)
        client = Redis.from_url(server.url, decode_responses=True, retry=retry)
        count = count_actor(broker_of(server.url))
        with _peer_workers(server.url, plan.workers) as workers:
            for number in range(plan.jobs):
                count.send(f"job-{number}", 10 * chance.randint(2, plan.most_steps))
            for number, kind in enumerate(kills):
                _until(client, "ended", plan.jobs * number // (len(kills) + 1), 60.0)
                time.sleep(chance.uniform(0, 0.2))
                if kind == "server":
                    assert server.pid is not None
                    os.kill(server.pid, signal.SIGKILL)
                else:
                    fallen = workers.pop(chance.randrange(len(workers)))
                    fallen.kill()
                    fallen.communicate()
                    workers.append(_peer_worker(server.url))
            _until(client, "ended", plan.jobs, 60.0)
            time.sleep(LATE_SECONDS)  # one that comes late is a double
            ended = client.lrange(f"{SPACE}:ended", 0, -1)
        client.close()
    times = Counter(line.split()[0] for line in ended)
    return plan.jobs - len(times), sum(number > 1 for number in times.values())


def _until(client: Redis, name: str, number: int, seconds: float) -> list[str]:
    """The lines of a list when it has so many, or after a time without a line more."""
    deadline, seen = time.monotonic() + seconds, 0
    while True:
        lines: list[str] = client.lrange(f"{SPACE}:{name}", 0, -1)
        if len(lines) > seen:
            deadline, seen = time.monotonic() + seconds, len(lines)
        if len(lines) >= number or time.monotonic() > deadline:
            return lines
        time.sleep(0.005)
