"""Any sequence of calls leaves the queue as a small model of it, kept in plain Python, predicts."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from api.jobs.embedded import EmbeddedServer
from api.jobs.errors import JobFinal, QueueFull
from api.jobs.job import TERMINAL, Claim, JobState
from api.jobs.redis_queue import MOST_LOSSES, RedisQueue
from api.settings import Settings
from tests.api.jobs.basis import order, pass_lease, pass_wait, result
from workflows.keeping import Fenced

T = TypeVar("T")
MOST_QUEUED = 4
ANY = st.integers(0, 7)
"""Which of the jobs, or of the claims, counted from the oldest and round the end."""


@dataclass
class Expected:
    """What the model knows of a job."""

    state: JobState = JobState.QUEUED
    fence: int = 0
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    cancelled: bool = False
    ends: int = 0

    def enter(self, state: JobState) -> None:
        """Move on."""
        self.state = state
        self.ends += state in TERMINAL


class QueueMachine(RuleBasedStateMachine):
    """Calls in any order, on claims old and present."""

    server: ClassVar[EmbeddedServer]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        space = f"m{secrets.token_hex(6)}"
        given = Settings(redis_url=self.server.url, namespace=space, max_queued=MOST_QUEUED)
        self.queue = RedisQueue(given)
        self.jobs: dict[str, Expected] = {}
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.do(self.queue.close())
        self.loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def pick(self, place: int) -> tuple[str, Expected] | None:
        names = list(self.jobs)
        return (names[place % len(names)], self.jobs[names[place % len(names)]]) if names else None

    def count(self, state: JobState) -> int:
        return sum(job.state is state for job in self.jobs.values())

    @rule()
    def submit(self) -> None:
        full = self.count(JobState.QUEUED) >= MOST_QUEUED
        try:
            job = self.do(self.queue.submit(order(), max_attempts=2))
        except QueueFull:
            assert full
        else:
            assert not full
            self.jobs[job.id] = Expected()

    @rule(place=ANY)
    def claim(self, place: int) -> None:
        if picked := self.pick(place):
            name, job = picked
            self.do(pass_wait(self.queue, name))
            claim = self.do(self.queue.claim(name, secrets.token_hex(4)))
            assert (claim is not None) == (job.state is JobState.QUEUED)
            if claim is not None:
                job.state = JobState.RUNNING
                job.fence += 1
                job.attempt += 1
                assert claim.fence == job.fence
                self.claims.append(claim)

    def write(
        self, place: int, call: Callable[[Claim], Coroutine[Any, Any, object]]
    ) -> Expected | None:
        """Write with some claim; the job, where the model lets that claim write."""
        if not self.claims:
            return None
        claim = self.claims[place % len(self.claims)]
        job = self.jobs[claim.job.id]
        if (job.state, job.fence) == (JobState.RUNNING, claim.fence):
            self.do(call(claim))
            return job
        before = self.do(self.queue.get(claim.job.id))
        with suppress(Fenced):  # but a call that is asked for again is answered again
            self.do(call(claim))
        assert self.do(self.queue.get(claim.job.id)) == before
        return None

    @rule(place=ANY)
    def renew(self, place: int) -> None:
        self.write(place, self.queue.renew)

    @rule(place=ANY, status=st.sampled_from(["completed", "failed", "interrupted", "waits"]))
    def finish(self, place: int, status: str) -> None:
        asks = {"asks": [{"id": "q"}]} if status == "waits" else {}
        given = result("interrupted" if asks else status, **asks)
        if job := self.write(place, lambda claim: self.queue.finish(claim, given)):
            state = JobState("waiting" if asks else status)
            job.enter(JobState.CANCELLED if job.cancelled and state not in TERMINAL else state)

    @rule(place=ANY, again=st.booleans())
    def give_up(self, place: int, again: bool) -> None:
        problem = {"code": "x", "message": "x"}
        if job := self.write(place, lambda c: self.queue.give_up(c, problem, retry=again)):
            job.failures += 1
            if job.cancelled:
                job.enter(JobState.CANCELLED)
            else:
                queued = again and job.failures < 2
                job.enter(JobState.QUEUED if queued else JobState.FAILED)

    @rule(place=ANY)
    def release(self, place: int) -> None:
        if job := self.write(place, self.queue.release):
            job.enter(JobState.CANCELLED if job.cancelled else JobState.QUEUED)

    @rule(place=ANY)
    def lose(self, place: int) -> None:
        if (picked := self.pick(place)) and picked[1].state is JobState.RUNNING:
            name, job = picked
            self.do(pass_lease(self.queue, name))
            job.losses += 1
            if job.cancelled:
                job.enter(JobState.CANCELLED)
            else:
                job.enter(JobState.FAILED if job.losses >= MOST_LOSSES else JobState.QUEUED)

    @rule(place=ANY)
    def cancel(self, place: int) -> None:
        if picked := self.pick(place):
            name, job = picked
            try:
                self.do(self.queue.cancel(name))
            except JobFinal:
                assert job.state in TERMINAL
                return
            assert job.state not in TERMINAL
            job.cancelled = True
            if job.state is not JobState.RUNNING:
                job.enter(JobState.CANCELLED)

    @rule(place=ANY)
    def answer(self, place: int) -> None:
        if (picked := self.pick(place)) and picked[1].state is JobState.WAITING:
            name, job = picked
            self.do(self.queue.resume(name, answers={"q": "a"}))
            job.state, job.failures, job.losses = JobState.QUEUED, 0, 0

    @rule(place=ANY)
    def retry(self, place: int) -> None:
        if picked := self.pick(place):
            name, job = picked
            try:
                self.do(self.queue.retry(name))
            except JobFinal:
                assert job.state is not JobState.FAILED
                return
            job.ends, job.cancelled = 0, False
            job.state, job.attempt, job.failures, job.losses = JobState.QUEUED, 0, 0, 0

    @invariant()
    def records_agree(self) -> None:
        for name, job in self.jobs.items():
            found = self.do(self.queue.get(name))
            facts = (found.state, found.fence, found.attempt, found.cancel_requested)
            assert facts == (job.state, job.fence, job.attempt, job.cancelled)
            assert (found.finished_at is not None) == (found.state in TERMINAL)

    @invariant()
    def indexes_agree(self) -> None:
        states = Counter(job.state for job in self.jobs.values())
        for state in JobState:
            found, _ = self.do(self.queue.list(state=state, tenant=""))
            assert len(found) == states[state]
        space = self.queue.settings.namespace
        pipe = self.queue.client.pipeline(transaction=True)
        for name in ("leases", "outbox", "sent:normal"):
            pipe.zcard(f"{space}:{name}")
        leased, due, sent = self.do(pipe.execute())
        assert leased == states[JobState.RUNNING]
        assert due + sent == states[JobState.QUEUED], "each has a message, or is due one"

    @invariant()
    def ends_are_told_once(self) -> None:
        for name, job in self.jobs.items():
            told = [data.get("state") for data in self.do(self.queue.history(name))]
            ends = sum(state in {t.value for t in TERMINAL} for state in told)
            retried = told.count("failed") - (job.state is JobState.FAILED)
            assert ends - retried == job.ends <= 1


def test_the_queue_does_what_its_model_does(valkey: EmbeddedServer) -> None:
    QueueMachine.server = valkey
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        QueueMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
