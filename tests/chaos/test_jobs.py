"""Queued jobs under SIGKILL and SIGSTOP: none is lost, none has two effects."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from api.jobs.errors import JobFinal
from api.jobs.job import TERMINAL, Job, JobState
from api.jobs.redis_queue import RedisQueue
from tests.chaos.fleet import Fleet, Site, Storm, site, storm
from tests.inference.tiny import checkpoint
from workflows.runs import RunOrder, prepare

LEASE = 2.0

SHORT = Storm()
LONG = Storm(jobs=1000, worker_kills=100, server_kills=20)


@pytest.mark.parametrize(
    "plan", [SHORT, pytest.param(LONG, marks=pytest.mark.soak)], ids=["short", "soak"]
)
@pytest.mark.timeout(3600)
def test_no_job_is_lost_and_none_has_two_effects(tmp_path: Path, plan: Storm) -> None:
    with site(tmp_path, lease=LEASE) as place:
        found = asyncio.run(storm(place, plan))
    assert len(found.expected) == plan.jobs
    assert found.lost == []
    assert found.doubled == []
    assert found.reruns > 0, "no kill hit a running job; the storm proves nothing"


def test_a_job_whose_worker_was_killed_runs_again_within_lease_and_a_second(
    tmp_path: Path,
) -> None:
    async def once(place: Site, fleet: Fleet, queue: RedisQueue) -> float:
        """Seconds from the kill of the only worker with the job to its next start."""
        other = fleet.pids.pop()
        os.kill(other, signal.SIGSTOP)
        try:
            job = await queue.submit(place.order(2000))
            await _progress(queue, job.id, 5)
        finally:
            os.kill(other, signal.SIGCONT)
            fleet.pids.append(other)
        killed = time.time()
        fleet.kill(fleet.pids[0])
        fleet.start()
        again = await _event(queue, job.id, attempt=2)
        await queue.cancel(job.id)
        await queue.wait(job.id, seconds=60)
        return again - killed

    async def work(place: Site) -> list[float]:
        with Fleet(place, 2) as fleet:
            async with RedisQueue.open(place.settings) as queue:
                return [await once(place, fleet, queue) for _ in range(3)]

    with site(tmp_path, lease=LEASE) as place:
        measured = asyncio.run(work(place))
    assert statistics.median(measured) <= LEASE + 1.0


@pytest.mark.parametrize(
    "stopped", [1.5 * LEASE, pytest.param(30.0, marks=pytest.mark.soak)], ids=["short", "soak"]
)
def test_a_worker_that_was_stopped_cannot_harm_its_successor(
    tmp_path: Path, stopped: float
) -> None:
    async def work(place: Site) -> tuple[Job, list[dict[str, object]]]:
        with Fleet(place, 1, threads=1) as fleet:
            async with RedisQueue.open(place.settings) as queue:
                job = await queue.submit(place.order(400))
                await _progress(queue, job.id, 20)
                sleeper = fleet.pids[0]
                os.kill(sleeper, signal.SIGSTOP)
                fleet.start()
                await asyncio.sleep(stopped)
                await _event(queue, job.id, attempt=2)
                os.kill(sleeper, signal.SIGCONT)
                done = await queue.wait(job.id, seconds=120)
                await asyncio.sleep(2 * LEASE / 3)  # what it still writes would be here by now
                assert await queue.get(job.id) == done
                return done, [dict(e.data) async for e in queue.events(job.id)]

    with site(tmp_path, lease=LEASE) as place:
        job, told = asyncio.run(work(place))
        log = (place.home / "workers.log").read_text(encoding="utf-8")
    assert (job.state, job.attempt, job.fence) == (JobState.COMPLETED, 2, 2)
    assert job.result is not None and job.result["outputs"]["seen"] == list(range(400))
    assert told[-1]["type"] == "job" and told[-1]["state"] == "completed"
    takeover = next(n for n, e in enumerate(told) if e.get("attempt") == 2)
    after = [e["task"] for e in told[takeover:] if e["type"] == "step_finished"]
    assert len(after) == len(set(after)), "only the successor wrote after it took over"
    assert "discarded" in log, "the late worker was told"


def test_a_running_generation_is_cancelled_within_two_seconds_and_once(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", context=100_000, endless=True)
    order = RunOrder(
        "closed_book",
        {"question": "Why?", "max_tokens": 90_000},
        model=str(model),
        budget={"tokens": 95_000},
    )

    async def work(place: Site) -> tuple[float, Job, list[object]]:
        async with RedisQueue.open(place.settings) as queue:
            job = await queue.submit(prepare(order))
            async for event in queue.events(job.id):
                if event.data["type"] == "tokens_produced":
                    break
            asked = time.monotonic()
            await queue.cancel(job.id)
            done = await queue.wait(job.id, seconds=60)
            seconds = time.monotonic() - asked
            with pytest.raises(JobFinal):
                await queue.cancel(job.id)
            states = [e.data.get("state") async for e in queue.events(job.id)]
            return seconds, done, states

    with site(tmp_path, lease=10.0) as place, Fleet(place, 1):
        seconds, job, states = asyncio.run(work(place))
    assert seconds <= 2.0
    assert job.state is JobState.CANCELLED and job.result is not None
    assert 0 < job.result["usage"]["completion_tokens"] < 90_000, "what was spent is charged"
    assert sum(state in {s.value for s in TERMINAL} for state in states) == 1


async def _progress(queue: RedisQueue, job_id: str, steps: int) -> None:
    """Return when the job has done some steps."""
    async for event in queue.events(job_id):
        steps -= event.data["type"] == "step_finished"
        if steps == 0:
            return


async def _event(queue: RedisQueue, job_id: str, attempt: int) -> float:
    """Time, by the server, at which an attempt of the job began."""
    async for event in queue.events(job_id):
        if event.data.get("attempt") == attempt:
            return int(event.id.partition("-")[0]) / 1000
    raise AssertionError(f"job {job_id} rests without attempt {attempt}")
