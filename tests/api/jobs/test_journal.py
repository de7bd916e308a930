"""The journal of a queued run: complete, in order, written once, and only while the claim holds."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.jobs.embedded import EmbeddedServer
from api.jobs.errors import QueueUnavailable
from api.jobs.job import Claim, Job, JobState
from api.jobs.journal import StreamJournal
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from tests.api.jobs.basis import claimed, pass_lease, started, with_queue
from workflows.events import Event, RunFinished, StepStarted, TextDelta, TokensProduced
from workflows.keeping import Fenced


def test_events_come_together_in_order_and_once(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        journal = StreamJournal(queue, claim)
        journal(StepStarted("a", "set", "1:a"))
        for at in range(5):
            journal(TokensProduced("a", "1:a", 1, at, (at,)))
            journal(TextDelta("a", str(at)))
        journal(TokensProduced("a", "1:a", 1, 5, (5,)))
        journal(TokensProduced("a", "1:a", 1, 6, (6, 7)))
        journal(RunFinished({"outputs": {}}))
        await journal.flush()
        told = (await queue.history(claim.job.id))[2:]
        assert [e["type"] for e in told].count("step_started") == 1
        tokens = [e for e in told if e["type"] == "tokens_produced"]
        assert [i for e in tokens for i in e["token_ids"]] == list(range(8))
        assert (tokens[-1]["at"], tokens[-1]["token_ids"]) == (5, [5, 6, 7])
        assert "run_finished" not in {e["type"] for e in told}
        await journal.flush()
        assert len(await queue.history(claim.job.id)) == len(told) + 2

    with_queue(settings, work)


def test_without_a_flush_they_are_written_soon(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        journal = StreamJournal(queue, claim)
        journal(TextDelta("a", "x"))
        while len(await queue.history(claim.job.id)) < 3:
            await asyncio.sleep(0.01)

    with_queue(settings, work)


def test_a_journal_that_was_succeeded_writes_nothing_more(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        journal = StreamJournal(queue, claim)
        await pass_lease(queue, claim.job.id)
        await claimed(queue, claim.job.id)
        before = await queue.history(claim.job.id)
        journal(TextDelta("a", "late"))
        for _ in range(2):
            with pytest.raises(Fenced):
                await journal.flush()
        assert await queue.history(claim.job.id) == before

    with_queue(settings, work)


def test_what_was_taken_in_waits_while_the_server_is_away(tmp_path: Path) -> None:
    async def work(server: EmbeddedServer) -> None:
        async with RedisQueue.open(Settings(), server.url) as queue:
            claim = await started(queue)
            journal = StreamJournal(queue, claim)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            for number in range(20_000):  # more than one script call takes
                journal(StepStarted("a", "set", f"{number}:a"))
                await asyncio.sleep(0.02 if number < 20 else 0)
            waiting = asyncio.create_task(journal.flush())
            await asyncio.sleep(0)
            waiting.cancel()  # a run that is cancelled meanwhile takes nothing away
            await journal.flush()
            told = [e["task"] for e in await queue.history(claim.job.id) if "task" in e]
            assert told == [f"{number}:a" for number in range(20_000)]

    with EmbeddedServer(tmp_path) as server:
        asyncio.run(work(server))


CLAIM = Claim(Job("j", "", JobState.RUNNING, "normal", {}, submitted_at=0.0), 1)


class Flaky:
    """A server whose answers get lost as told; what it wrote counts all the same."""

    def __init__(self, lost: Sequence[bool]) -> None:
        self.lost = list(lost)
        self.written: dict[int, Sequence[bytes]] = {}

    async def append(self, claim: Claim, batch: int, events: Sequence[bytes]) -> None:
        """Write a batch unless it is there; maybe the answer is lost."""
        self.written.setdefault(batch, events)
        if self.lost and self.lost.pop():
            raise QueueUnavailable("away")


@given(st.lists(st.booleans(), max_size=4), st.lists(st.integers(0, 3), max_size=30))
def test_lost_answers_change_neither_order_nor_number(lost: list[bool], pauses: list[int]) -> None:
    async def work() -> list[bytes]:
        server = Flaky(lost)
        journal = StreamJournal(server, CLAIM)
        events: list[Event] = [StepStarted("n", "set", str(n)) for n in range(len(pauses))]
        for event, pause in zip(events, pauses, strict=True):
            journal(event)
            if pause == 0:
                await journal.flush()
            elif pause == 1:
                await asyncio.sleep(0)
        await journal.flush()
        assert list(server.written) == list(range(1, len(server.written) + 1))
        return [line for batch in server.written.values() for line in batch]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.jobs.journal.PATIENCE", 0)
        patch.setattr("api.jobs.journal.log.warning", lambda *_: None)
        written = asyncio.run(work())
    assert [f'"task":"{n}"'.encode() in line for n, line in enumerate(written)] == [True] * len(
        pauses
    )
