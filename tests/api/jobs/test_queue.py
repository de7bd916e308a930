"""The queue on real servers: what is accepted, what follows from what, who may write."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import pytest

from api.jobs.errors import IdempotencyConflict, JobFinal, QueueFull, UnknownJob
from api.jobs.job import RESTING, JobState
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from tests.api.jobs.basis import (
    claimed,
    order,
    pass_lease,
    pass_wait,
    result,
    started,
    with_queue,
)
from workflows.errors import WorkflowInputError


def test_a_job_from_acceptance_to_result(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        manifest = order()
        job = await queue.submit(manifest, tenant="t", priority="high")
        assert (job.state, job.attempt, job.manifest) == (JobState.QUEUED, 0, asdict(manifest))
        claim = await claimed(queue, job.id)
        assert (claim.job.state, claim.job.attempt, claim.fence) == (JobState.RUNNING, 1, 1)
        assert await queue.claim(job.id, "another") is None
        assert await queue.renew(claim)
        await queue.append(claim, 1, [b'{"type": "a"}', b'{"type": "b"}'])
        done = await queue.finish(claim, result())
        assert (done.state, done.result) == (JobState.COMPLETED, result())
        assert done.submitted_at <= (done.started_at or 0) <= (done.finished_at or 0)
        assert await queue.get(job.id, tenant="t") == done
        told = [event.data async for event in queue.events(job.id)]
        kinds = [data.get("state", data["type"]) for data in told]
        assert kinds == ["queued", "running", "a", "b", "completed"]

    with_queue(settings, work)


def test_an_idempotency_key_stands_for_one_order(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        first = await queue.submit(order(), key="k")
        assert await queue.submit(order(), key="k") == first
        with pytest.raises(IdempotencyConflict, match=first.id):
            await queue.submit(order(seed=1), key="k")
        with pytest.raises(IdempotencyConflict):
            await queue.submit(order(), key="k", priority="low")
        elsewhere = await queue.submit(order(), key="k", tenant="other")
        assert elsewhere.id != first.id
        assert len((await queue.list())[0]) == 2

    with_queue(settings, work)


def test_submits_that_race_under_one_key_make_one_job(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        async with RedisQueue.open(settings) as other:
            pair = (queue, other)
            made = await asyncio.gather(
                *(pair[n % 2].submit(order(), key=f"k{n // 8}") for n in range(64))
            )
        assert len({job.id for job in made}) == 8
        assert len((await queue.list(limit=200))[0]) == 8

    with_queue(settings, work)


def test_a_submit_that_is_sent_again_changes_nothing(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        manifest = order()
        assert await queue.submit(manifest) == await queue.submit(manifest)
        with pytest.raises(WorkflowInputError, match="exists"):
            await queue.submit(order(run_id=manifest.run_id, seed=9))

    with_queue(settings, work)


def test_a_full_queue_says_so_and_takes_again_later(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        first = await queue.submit(order())
        await queue.submit(order())
        with pytest.raises(QueueFull, match="RAGWRIGHT_MAX_QUEUED"):
            await queue.submit(order())
        await queue.cancel(first.id)
        assert (await queue.submit(order())).state is JobState.QUEUED

    with_queue(settings.model_copy(update={"max_queued": 2}), work)


def test_a_tenant_knows_only_its_own_jobs(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        job = await queue.submit(order(), tenant="a")
        for ask in (queue.get, queue.cancel, queue.retry, queue.wait):
            with pytest.raises(UnknownJob):
                await ask(job.id, tenant="b")
        with pytest.raises(UnknownJob):
            await queue.resume(job.id, tenant="b", answers={"x": "y"})
        with pytest.raises(UnknownJob):
            _ = [event async for event in queue.events(job.id, tenant="b")]
        assert (await queue.list(tenant="b"))[0] == []
        assert (await queue.list(tenant="b", state=JobState.QUEUED))[0] == []
        assert [found.id for found in (await queue.list(tenant="a"))[0]] == [job.id]
        assert (await queue.get(job.id)).state is JobState.QUEUED, "nobody changed it"

    with_queue(settings, work)


@pytest.mark.parametrize("job_id", ["nope", "", "a" * 500, "../x", "\udcff", "a:b", "日本"])
def test_ids_of_no_job(settings: Settings, job_id: str) -> None:
    async def work(queue: RedisQueue) -> None:
        with pytest.raises(UnknownJob):
            await queue.get(job_id)
        with pytest.raises(UnknownJob):
            await queue.cancel(job_id)

    with_queue(settings, work)


def test_lists_go_on_where_a_page_ended(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        made = [(await queue.submit(order(), tenant="ab"[n % 2])).id for n in range(7)]
        for tenant, ids in ((None, made), ("a", made[::2]), ("b", made[1::2])):
            pages, cursor = [], None
            while True:
                found, cursor = await queue.list(
                    tenant=tenant, state=JobState.QUEUED, limit=2, cursor=cursor
                )
                pages.append([job.id for job in found])
                await queue.submit(order(), tenant="c")  # later jobs come before the first page
                if cursor is None:
                    break
            if tenant is not None:
                assert [name for page in pages for name in page] == ids[::-1]
            else:
                assert [n for page in pages for n in page if n in made] == ids[::-1]
        with pytest.raises(WorkflowInputError, match="cursor"):
            await queue.list(cursor="(3")

    with_queue(settings, work)


def test_cancel_where_no_worker_holds_the_job_is_final_at_once(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        job = await queue.submit(order())
        assert (await queue.cancel(job.id)).state is JobState.CANCELLED
        assert await queue.claim(job.id, "w") is None
        with pytest.raises(JobFinal, match="cancelled"):
            await queue.cancel(job.id)
        asked = await started(queue)
        await queue.finish(asked, result("interrupted", asks=[{"id": "q", "node": "n"}]))
        assert (await queue.cancel(asked.job.id)).state is JobState.CANCELLED

    with_queue(settings, work)


@pytest.mark.parametrize("how", ["finish", "waits", "give_up", "release", "lost"])
def test_cancel_of_a_running_job_wins_over_all_but_its_end(settings: Settings, how: str) -> None:
    async def work(queue: RedisQueue) -> JobState:
        claim = await started(queue)
        asked = await queue.cancel(claim.job.id)
        assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
        assert not await queue.wanted(claim) and not await queue.renew(claim)
        if how == "finish":
            await queue.finish(claim, result())
        elif how == "waits":
            await queue.finish(claim, result("interrupted", asks=[{"id": "q"}]))
        elif how == "give_up":
            await queue.give_up(claim, {"code": "x", "message": "x"}, retry=True)
        elif how == "release":
            await queue.release(claim)
        else:
            await pass_lease(queue, claim.job.id)
        return (await queue.get(claim.job.id)).state

    expected = JobState.COMPLETED if how == "finish" else JobState.CANCELLED
    assert with_queue(settings, work) is expected


def test_tries_end_in_the_dead_letter_list_and_begin_again(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        job = await queue.submit(order(), max_attempts=2)
        problem = {"code": "server_timeout", "message": "slow"}
        first = await queue.give_up(await claimed(queue, job.id), problem, retry=True)
        assert (first.state, first.error, first.attempt) == (JobState.QUEUED, problem, 1)
        assert await queue.claim(job.id, "w") is None, "it waits before its second try"
        await pass_wait(queue, job.id)
        claim = await claimed(queue, job.id)
        dead = await queue.give_up(claim, problem, retry=True, result=result("failed"))
        assert (dead.state, dead.result) == (JobState.FAILED, result("failed"))
        assert [j.id for j in (await queue.list(state=JobState.FAILED))[0]] == [job.id]
        again = await queue.retry(job.id)
        assert (again.state, again.attempt, again.error) == (JobState.QUEUED, 0, None)
        claim = await claimed(queue, job.id)
        assert claim.fence == 3, "fences never begin again"
        assert (await queue.finish(claim, result())).state is JobState.COMPLETED
        with pytest.raises(JobFinal, match="completed"):
            await queue.retry(job.id)

    with_queue(settings, work)


def test_a_failure_that_will_not_pass_is_tried_once(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        problem = {"code": "bad_input", "message": "no"}
        job = await queue.give_up(await started(queue), problem, retry=False)
        assert job.state is JobState.FAILED

    with_queue(settings, work)


def test_the_wait_before_a_retry_doubles(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> list[float]:
        job, waits = await queue.submit(order(), max_attempts=9), []
        for _ in range(8):
            claim = await claimed(queue, job.id)
            await queue.give_up(claim, {"code": "x", "message": "x"}, retry=True)
            waits.append((await queue.history(job.id))[-1]["retry_in"])
            await pass_wait(queue, job.id)
        return waits

    assert with_queue(settings, work) == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_released_job_is_queued_at_once(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        assert (await queue.release(claim)).state is JobState.QUEUED
        assert (await claimed(queue, claim.job.id)).job.attempt == 2

    with_queue(settings, work)


def test_a_waiting_job_takes_answers_to_what_it_asks(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        asks = [{"id": "1:ask", "node": "ask", "prompt": "Send it?"}]
        job = await queue.finish(claim, result("interrupted", asks=asks))
        assert (job.state, list(job.asks)) == (JobState.WAITING, asks)
        assert await queue.claim(job.id, "w") is None
        with pytest.raises(WorkflowInputError, match="1:ask"):
            await queue.resume(job.id)
        with pytest.raises(WorkflowInputError, match=r"'other'.*1:ask"):
            await queue.resume(job.id, answers={"other": "yes"})
        again = await queue.resume(job.id, answers={"1:ask": "ja, größer"})
        assert (again.state, again.asks) == (JobState.QUEUED, ())
        with pytest.raises(JobFinal):
            await queue.resume(job.id, answers={"1:ask": "no"})
        assert (await claimed(queue, job.id)).answers == {"1:ask": "ja, größer"}
        await pass_lease(queue, job.id)
        assert (await claimed(queue, job.id)).answers == {"1:ask": "ja, größer"}, "kept"

    with_queue(settings, work)


def test_an_interrupted_job_takes_a_higher_budget(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue, budget={"tokens": 10})
        spent = {"code": "budget_exhausted", "message": "tokens"}
        job = await queue.finish(claim, result("interrupted", error=spent))
        assert (job.state, job.error) == (JobState.INTERRUPTED, spent)
        with pytest.raises(WorkflowInputError, match="higher"):
            await queue.resume(job.id)
        with pytest.raises(WorkflowInputError, match="higher than the 10"):
            await queue.resume(job.id, budget={"tokens": 10})
        with pytest.raises(WorkflowInputError, match="did you mean 'tokens'"):
            await queue.resume(job.id, budget={"token": 20})
        await queue.resume(job.id, budget={"tokens": 20})
        assert (await claimed(queue, job.id)).job.manifest["budget"] == {"tokens": 20}

    with_queue(settings, work)


def test_events_go_on_after_any_of_them(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)

        async def produce() -> None:
            for number in range(1, 20):
                await queue.append(claim, number, [b'{"type": "%d"}' % number])
                await asyncio.sleep(0.002)
            await queue.finish(claim, result())

        producing = asyncio.create_task(produce())
        live = [event async for event in queue.events(claim.job.id)]
        await producing
        kinds = [event.data["type"] for event in live]
        assert kinds == ["job", "job", *map(str, range(1, 20)), "job"]
        for place in (0, 7, len(live) - 1):
            after = [e async for e in queue.events(claim.job.id, after=live[place].id)]
            assert after == live[place + 1 :]
        with pytest.raises(WorkflowInputError, match="event id"):
            _ = [event async for event in queue.events(claim.job.id, after="$")]

    with_queue(settings, work)


def test_waiting_ends_with_the_job_or_with_the_time(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        with pytest.raises(TimeoutError):
            await queue.wait(claim.job.id, seconds=0.05)
        waiting = asyncio.create_task(queue.wait(claim.job.id, seconds=30))
        await asyncio.sleep(0.05)
        await queue.finish(claim, result())
        assert (await waiting).state in RESTING
        assert (await queue.wait(claim.job.id)).result == result()

    with_queue(settings, work)


def test_old_jobs_are_removed_with_all_that_belongs_to_them(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        kept = await queue.submit(order(), key="kept")
        for end in ("completed", "failed", "cancelled"):
            job = await queue.submit(order(), key=end)
            await queue.finish(await claimed(queue, job.id), result(end))
        waiting = await started(queue)
        await queue.finish(waiting, result("interrupted", asks=[{"id": "q"}]))
        await asyncio.sleep(0.02)
        await queue.tend()
        assert {job.id for job in (await queue.list())[0]} == {kept.id, waiting.job.id}
        left = [key async for key in queue.client.scan_iter(f"{settings.namespace}:*")]
        jobs = [key for key in left if ":job:" in key or ":events:" in key or ":key:" in key]
        assert len(jobs) == 2 + 2 + 1
        assert await queue.client.zcard(f"{settings.namespace}:done") == 0
        assert (await queue.submit(order(seed=5), key="failed")).state is JobState.QUEUED

    with_queue(settings.model_copy(update={"retention": 0.01}), work)


def test_final_jobs_expire_even_if_no_worker_runs(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        name = f"{settings.namespace}:job:{claim.job.id}"
        assert await queue.client.ttl(name) == -1
        await queue.give_up(claim, {"code": "x", "message": "x"}, retry=False)
        assert settings.retention < await queue.client.ttl(name) <= settings.retention + 3601
        await queue.retry(claim.job.id)
        assert await queue.client.ttl(name) == -1, "a job that runs again does not expire"
        await queue.client.delete(name)
        assert (await queue.list())[0] == [], "an id without a record leaves the list"

    with_queue(settings, work)
