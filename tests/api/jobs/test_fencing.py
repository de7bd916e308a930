"""Who may write: the holder of the latest claim, once, however often it asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from api.jobs.job import Claim, JobState
from api.jobs.redis_queue import MOST_LOSSES, RedisQueue
from api.settings import Settings
from tests.api.jobs.basis import claimed, order, pass_lease, result, started, with_queue
from workflows.keeping import Fenced

Write = Callable[[RedisQueue, Claim], Awaitable[object]]
WRITES: dict[str, Write] = {
    "renew": lambda queue, claim: queue.renew(claim),
    "wanted": lambda queue, claim: queue.wanted(claim),
    "append": lambda queue, claim: queue.append(claim, 1, [b"{}"]),
    "finish": lambda queue, claim: queue.finish(claim, result(outputs="late")),
    "give_up": lambda queue, claim: queue.give_up(claim, {"code": "late"}, retry=True),
    "release": lambda queue, claim: queue.release(claim),
}


@pytest.mark.parametrize("when", ["queued", "running", "completed"])
@pytest.mark.parametrize("write", WRITES)
def test_late_writes_are_refused_and_change_nothing(
    settings: Settings, write: str, when: str
) -> None:
    async def work(queue: RedisQueue) -> None:
        late = await started(queue)
        await pass_lease(queue, late.job.id)
        if when != "queued":
            successor = await claimed(queue, late.job.id)
            assert successor.fence == late.fence + 1
        if when == "completed":
            await queue.finish(successor, result())
        before = await queue.get(late.job.id), await queue.history(late.job.id)
        assert before[0].state == when
        with pytest.raises(Fenced, match=late.job.id):
            await WRITES[write](queue, late)
        assert before == (await queue.get(late.job.id), await queue.history(late.job.id))

    with_queue(settings, work)


def test_an_answer_that_got_lost_can_be_asked_for_again(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        job = await queue.submit(order())
        first = await queue.claim(job.id, "token")
        assert first is not None and await queue.claim(job.id, "token") == first
        for _ in range(2):
            await queue.append(first, 1, [b'{"type": "once"}'])
        told = [data["type"] for data in await queue.history(job.id)]
        assert told == ["job", "job", "once"]
        assert await queue.finish(first, result()) == await queue.finish(first, result())
        states = [data.get("state") for data in await queue.history(job.id)]
        assert states.count("completed") == 1

    with_queue(settings, work)


def test_a_lost_worker_costs_no_try_but_too_many_do(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        job = await queue.submit(order(), max_attempts=1)
        for losses in range(1, MOST_LOSSES + 1):
            await claimed(queue, job.id)
            await pass_lease(queue, job.id)
            state = (await queue.get(job.id)).state
            assert state is (JobState.FAILED if losses == MOST_LOSSES else JobState.QUEUED)
        dead = await queue.get(job.id)
        assert dead.error is not None and dead.error["code"] == "worker_lost"

    with_queue(settings, work)
