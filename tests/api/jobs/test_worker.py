"""Worker processes as an operator starts them: what they take, how they end, what they wait for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.jobs.attempt import forget, jobs_home
from api.jobs.delivery import Gate
from api.jobs.job import Job, JobState
from api.jobs.redis_queue import RedisQueue
from api.jobs.worker import Worker
from tests.chaos.fleet import Fleet, Site, site
from tests.house.source import ROOT
from tests.postgres import NoPostgres, postgres
from workflows.runs import RunOrder, prepare

ASKS = """
name: fails
inputs: {n: {type: integer, default: 0}}
state: {x: 0}
nodes:
  a: {use: set, with: {values: {x: "${1 / inputs.n}"}}}
edges: [{from: start, to: a}, {from: a, to: end}]
outputs: {x: "${state.x}"}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server and a home for all tests here."""
    with site(tmp_path_factory.mktemp("worker"), lease=2.0, drain=2.0) as made:
        yield made


@pytest.fixture(autouse=True)
def home(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers inside the test keep their files where those outside do."""
    monkeypatch.setenv("RAGWRIGHT_HOME", str(place.home))


@asynccontextmanager
async def working(place: Site, threads: int = 1, **options: object) -> AsyncIterator[RedisQueue]:
    """A queue, and a worker in this process that drains at the end."""
    async with RedisQueue.open(place.settings) as queue, RedisQueue.open(place.settings) as own:
        worker = Worker(own, threads=threads, **options)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run())
        try:
            yield queue
        finally:
            worker.drain()
            await running


@contextmanager
def command(place: Site, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`ragwright worker`, killed at the end if it is still there."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "worker", *options],
        env=place.environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.communicate()


async def running(queue: RedisQueue, job_id: str) -> Job:
    """The job once a worker has done a step of it."""
    async for event in queue.events(job_id):
        if event.data["type"] == "step_finished":
            break
    return await queue.get(job_id)


def test_high_goes_first_and_low_last(place: Site) -> None:
    async def work() -> list[str]:
        async with RedisQueue.open(place.settings) as queue:
            jobs = [
                await queue.submit(place.order(2), priority=priority)
                for priority in ("low", "normal", "high", "low", "normal", "high")
            ]
        async with working(place) as queue:
            done = [await queue.wait(job.id, seconds=30) for job in jobs]
        done.sort(key=lambda job: job.started_at or 0)
        return [job.priority for job in done]

    assert asyncio.run(work()) == ["high", "high", "normal", "normal", "low", "low"]


def test_a_job_does_not_wait_behind_a_long_one_while_a_thread_is_free(place: Site) -> None:
    async def work() -> None:
        async with working(place) as queue, working(place):
            long = await queue.submit(place.order(5000))
            await running(queue, long.id)
            for _ in range(4):
                short = await queue.submit(place.order(2))
                assert (await queue.wait(short.id, seconds=30)).state is JobState.COMPLETED
            assert (await queue.cancel(long.id)).state is JobState.RUNNING
            assert (await queue.wait(long.id, seconds=30)).state is JobState.CANCELLED
        assert not list(jobs_home().glob(f"*/{long.id}"))

    asyncio.run(work())


def test_a_worker_serves_only_its_queues(place: Site) -> None:
    async def work() -> None:
        async with working(place, queues=["low"]) as queue:
            other = await queue.submit(place.order(2), priority="high")
            mine = await queue.submit(place.order(2), priority="low")
            assert (await queue.wait(mine.id, seconds=30)).state is JobState.COMPLETED
            assert (await queue.cancel(other.id)).attempt == 0

    asyncio.run(work())


def test_a_message_that_vanished_is_sent_again(place: Site) -> None:
    async def work() -> None:
        async with RedisQueue.open(place.settings) as queue:
            job = await queue.submit(place.order(2))
        async with RedisQueue.open(place.settings) as queue:
            space = place.settings.namespace
            messages = [key async for key in queue.client.scan_iter(f"{space}:dramatiq:*")]
            assert await queue.client.delete(*messages) > 0
        async with working(place) as queue:
            assert (await queue.wait(job.id, seconds=30)).state is JobState.COMPLETED

    asyncio.run(work())


def test_a_message_that_comes_twice_runs_the_job_once(place: Site) -> None:
    async def work() -> None:
        async with working(place, threads=4) as queue:
            job = await queue.submit(place.order(4))
            for _ in range(6):
                await asyncio.to_thread(queue.broker.send, job.id, "normal")
            assert (await queue.wait(job.id, seconds=30)).attempt == 1
            for _ in range(3):
                await asyncio.to_thread(queue.broker.send, job.id, "normal")
            other = await queue.submit(place.order(2))
            await queue.wait(other.id, seconds=30)
            told = [e.data async for e in queue.events(job.id)]
        assert sum(data.get("state") == "running" for data in told) == 1

    asyncio.run(work())


def test_the_submitted_version_runs_whatever_the_file_holds_by_then(place: Site) -> None:
    async def work() -> None:
        before = place.workflow.read_text("utf-8")
        async with RedisQueue.open(place.settings) as queue:
            job = await queue.submit(place.order(3))
        place.workflow.write_text(before.replace("state.n + 1", "state.n + 2"), encoding="utf-8")
        try:
            async with working(place) as queue:
                done = await queue.wait(job.id, seconds=30)
        finally:
            place.workflow.write_text(before, encoding="utf-8")
        assert done.result is not None and done.result["outputs"]["n"] == 3

    asyncio.run(work())


def test_a_run_that_fails_is_dead_with_its_result(place: Site, tmp_path: Path) -> None:
    file = tmp_path / "fails.yaml"
    file.write_text(ASKS, encoding="utf-8")

    async def work() -> None:
        async with working(place) as queue:
            job = await queue.submit(prepare(RunOrder(str(file))))
            dead = await queue.wait(job.id, seconds=30)
            assert (dead.state, dead.attempt) == (JobState.FAILED, 1), "it would fail again"
            assert dead.error is not None and dead.error["code"] == "expression_error"
            assert dead.result is not None and dead.result["status"] == "failed"

    asyncio.run(work())


def test_a_spent_budget_waits_for_a_higher_one(place: Site) -> None:
    async def work() -> None:
        async with working(place) as queue:
            order = prepare(RunOrder(str(place.workflow), {"to": 400}, budget={"seconds": 0.3}))
            job = await queue.submit(order)
            cut = await queue.wait(job.id, seconds=30)
            assert cut.state is JobState.INTERRUPTED and cut.result is not None
            assert 0 < cut.result["outputs"]["n"] < 400
            await queue.resume(job.id, budget={"seconds": 600})
            done = await queue.wait(job.id, seconds=60)
            assert done.state is JobState.COMPLETED and done.result is not None
            assert done.result["outputs"]["seen"] == list(range(400))

    asyncio.run(work())


def test_sigterm_gives_the_job_back_where_it_stands(place: Site) -> None:
    async def work() -> None:
        async with RedisQueue.open(place.settings) as queue:
            job = await queue.submit(place.order(5000))
            with command(place, "--threads", "1") as worker:
                await running(queue, job.id)
                began = time.monotonic()
                worker.terminate()
                status = await asyncio.to_thread(worker.wait, 30)
                assert (status, time.monotonic() - began < place.settings.drain + 5) == (0, True)
            given_back = await queue.get(job.id)
            assert (given_back.state, given_back.attempt) == (JobState.QUEUED, 1)
            done = steps(await queue.history(job.id))
        async with working(place) as queue:
            async for event in queue.events(job.id):
                if steps([event.data]) > done[-1:]:
                    break
            await queue.cancel(job.id)
            assert (await queue.wait(job.id, seconds=60)).attempt == 2
            every = steps(await queue.history(job.id))
            assert len(every) - len(set(every)) <= 1, "only the step that was cut off ran again"

    asyncio.run(work())


def test_with_postgres_a_job_goes_on_at_another_host(place: Site, tmp_path: Path) -> None:
    async def work(here: Site, there: Site) -> None:
        async with RedisQueue.open(here.settings) as queue:
            job = await queue.submit(here.order(5000))
            with command(here, "--threads", "1") as worker:
                await running(queue, job.id)
                worker.kill()
            with command(there, "--threads", "1"):
                done: list[int] = []
                async for event in queue.events(job.id):
                    if event.data.get("attempt") == 2:
                        done = steps(await queue.history(job.id))
                    elif done and steps([event.data]) > done[-1:]:
                        break
                await queue.cancel(job.id)
                assert (await queue.wait(job.id, seconds=60)).attempt == 2
            every = steps(await queue.history(job.id))
            assert len(every) - len(set(every)) <= 1, "it went on where the other host was"

    try:
        with postgres() as url:
            settings = place.settings.model_copy(update={"postgres_url": url, "namespace": "pg"})
            here = replace(place, settings=settings)
            asyncio.run(work(here, replace(here, home=tmp_path / "there")))
    except NoPostgres as missing:
        pytest.skip(str(missing))


def steps(told: Iterable[Mapping[str, Any]]) -> list[int]:
    """Numbers of the supersteps that finished."""
    tasks = [data["task"] for data in told if data["type"] == "step_finished"]
    return [int(task.partition(":")[0]) for task in tasks]


def test_a_worker_waits_for_a_server_that_is_not_there_yet(place: Site) -> None:
    number = place.server.url.rpartition(":")[2].partition("/")[0]
    nobody = {**place.environment, "RAGWRIGHT_REDIS_URL": "redis://127.0.0.1:1"}
    assert number != "1"
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli", "worker"],
        env=nobody,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        try:
            assert worker.stderr is not None
            line = worker.stderr.readline()
            assert "127.0.0.1:1" in line and "trying again" in line
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
        finally:
            worker.kill()


def test_a_job_without_a_model_loads_no_torch(place: Site) -> None:
    probe = (
        "import asyncio, json, sys\n"
        "from api.jobs.redis_queue import RedisQueue\n"
        "from api.jobs.worker import Worker\n"
        "from api.settings import Settings\n"
        "async def main():\n"
        "    async with RedisQueue.open(Settings()) as queue, RedisQueue.open(Settings()) as own:\n"
        "        worker = Worker(own, threads=1)\n"
        "        running = asyncio.create_task(worker.run())\n"
        "        job = await queue.wait(sys.argv[1], seconds=60)\n"
        "        worker.drain()\n"
        "        await running\n"
        "        print(json.dumps([job.state, 'torch' in sys.modules]))\n"
        "asyncio.run(main())\n"
    )

    async def submitted() -> str:
        async with RedisQueue.open(place.settings) as queue:
            return (await queue.submit(place.order(2))).id

    done = subprocess.run(
        [sys.executable, "-c", probe, asyncio.run(submitted())],
        env=place.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == ["completed", False]


def test_two_queues_with_one_home_may_know_the_same_id(place: Site) -> None:
    async def work() -> None:
        other = place.settings.model_copy(update={"namespace": "other"})
        async with working(place) as queue, RedisQueue.open(other) as second:
            first = await queue.submit(place.order(5000, run_id="same"))
            await running(queue, first.id)
            async with RedisQueue.open(other) as own:
                worker = Worker(own, threads=1)
                serving = asyncio.create_task(worker.run())
                await second.submit(place.order(3, run_id="same"))
                done = await second.wait("same", seconds=30)
                worker.drain()
                await serving
            assert done.state is JobState.COMPLETED and done.result is not None
            assert done.result["outputs"]["n"] == 3
            assert list(jobs_home().glob("*/same")), "the other's checkpoints are still there"
            await queue.cancel("same")
            await queue.wait("same", seconds=30)

    asyncio.run(work())


@pytest.mark.parametrize("name", ["..", "../runs", "/", "", ".", "a/../.."])
def test_a_notice_that_is_no_job_removes_nothing(place: Site, name: str) -> None:
    kept = jobs_home() / "queue" / "job" / "checkpoints.sqlite"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.touch()
    forget("queue", name)
    assert kept.exists()


def test_a_gate_lets_through_as_many_as_it_has_slots() -> None:
    gate = Gate(2)
    for _ in range(2):
        assert gate.is_open()
        gate.take()
    assert not gate.is_open()
    seen = gate.changes
    gate.give()
    gate.wait(seen, 10)  # returns at once: something changed
    assert gate.is_open()
    gate.close()
    assert not gate.is_open(), "a worker that drains takes nothing more"


def test_the_nursery_leaves_no_worker_behind(place: Site) -> None:
    with Fleet(place, 2) as fleet:
        pids = list(fleet.pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            for _ in range(500):
                os.kill(pid, 0)
                time.sleep(0.01)
