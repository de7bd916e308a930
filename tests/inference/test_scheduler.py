"""Block manager and scheduler under random work: counts add up, budgets hold, nobody starves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from inference.native.blocks import BlockManager, salt
from inference.native.scheduler import GUARD, Scheduler
from inference.native.sequence import Draft, Sequence, Status

SIZE = 4
CAPACITY = 12
CONTEXT = SIZE * CAPACITY  # one sequence always fits, as in the engine


OWN: Any = object()
"""Stands for a cache of a sequence's own; only the runner looks into it."""

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=24)


def chain_of(written: tuple[Any, ...]) -> bytes:
    """Hash of a block by what its last slot holds: salt and tokens."""
    root, *ids = written
    seq = Sequence(list(ids), salt=root)
    return BlockManager(1, 1, SIZE)._chain(seq, len(ids) // SIZE)[-1]


class Work(RuleBasedStateMachine):
    """Sequences come, fork, decode, end and are preempted; a model store records each write."""

    @initialize(budget=st.integers(1, 20), rows=st.integers(1, 5), keep=st.integers(0, CAPACITY))
    def start(self, budget: int, rows: int, keep: int) -> None:
        self.blocks = BlockManager(CAPACITY, keep, SIZE)
        self.scheduler = Scheduler(self.blocks, budget, rows)
        self.live: list[Sequence] = []
        self.store: dict[int, tuple[int, ...]] = {}  # slot -> tokens up to the one written there

    @rule(ids=prompts, expected=st.integers(0, 40), adapter=st.sampled_from(["", "a", "b"]))
    def add(self, ids: list[int], expected: int, adapter: str) -> None:
        seq = Sequence(list(ids), expected, salt("model", adapter))
        self.live.append(seq)
        self.scheduler.add(seq)

    @rule(pair=st.tuples(prompts, prompts), adapter=st.sampled_from(["", "a"]))
    def add_group(self, pair: tuple[list[int], list[int]], adapter: str) -> None:
        rows = tuple(
            Sequence(list(ids)[: CONTEXT // 4], salt=salt("model", name))
            for ids, name in zip(pair, ("", adapter), strict=True)
        )
        for seq in rows:
            seq.group = rows
            self.live.append(seq)
        for seq in rows:
            self.scheduler.add(seq)

    @rule(ids=prompts, reserve=st.integers(1, CAPACITY), chunk=st.sampled_from([None, 3]))
    def add_own(self, ids: list[int], reserve: int, chunk: int | None) -> None:
        seq = Sequence(list(ids), salt=salt("model"), prompt=len(ids), chunk=chunk)
        seq.cache, seq.reserve = OWN, reserve
        self.live.append(seq)
        self.scheduler.add(seq)

    @precondition(lambda self: any(s.remaining == 1 for s in self.scheduler.running))
    @rule(data=st.data())
    def draft(self, data: Any) -> None:
        ready = [s for s in self.scheduler.running if s.remaining == 1 and not s.group]
        if not ready:
            return
        seq = data.draw(st.sampled_from(ready))
        count = data.draw(st.integers(1, 9))
        parents = [data.draw(st.integers(-1, at - 1)) for at in range(count)]
        seq.draft = Draft(tuple(at % 2 for at in range(count)), tuple(parents))

    @precondition(lambda self: any(s.cached and s.blocks for s in self.live))
    @rule(data=st.data())
    def fork(self, data: Any) -> None:
        parent = data.draw(st.sampled_from([s for s in self.live if s.cached and s.blocks]))
        cached = data.draw(st.integers(0, min(parent.cached, len(parent.ids) - 1)))
        tail = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=5))
        child = Sequence([*parent.ids[:cached], *tail][:CONTEXT], salt=parent.salt)
        self.live.append(child)
        self.scheduler.fork(parent, child, min(cached, len(child.ids) - 1))
        if data.draw(st.booleans()):
            self.end(parent)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: Any) -> None:
        chosen = data.draw(st.sampled_from(self.live))
        self.end(chosen)
        assert (chosen.blocks, chosen.reserved, chosen.status) == ([], 0, Status.FINISHED)

    def end(self, chosen: Sequence) -> None:
        for seq in chosen.group or (chosen,):
            self.live.remove(seq)
            self.scheduler.finish(seq)

    @precondition(lambda self: any(s.cache is None for s in self.scheduler.running))
    @rule(data=st.data())
    def preempt(self, data: Any) -> None:
        victims = [s for s in self.scheduler.running if s.cache is None]
        self.scheduler.preempt(data.draw(st.sampled_from(victims)))

    @rule()
    def clear(self) -> None:
        self.blocks.clear()

    @rule(token=st.integers(0, 1))
    def step(self, token: int) -> None:
        decoding = [s for s in self.scheduler.running if s.remaining == 1]
        running = list(self.scheduler.running)
        picked = self.scheduler.schedule()
        assert picked or not self.live
        self.check_picked(picked, decoding, running)
        self.copy()
        self.write(picked)
        self.scheduler.advance()
        for seq in picked:
            if seq.draft is not None:
                self.settle(seq)
        for seq in picked:
            # A group gets its next token when each of its rows has its logits.
            rows = seq.group or (seq,)
            if seq.status is Status.RUNNING and all(one.remaining == 0 for one in rows):
                for one in rows:
                    one.ids.append(token)
                if sum(-(-len(one.ids) // SIZE) for one in rows) > CAPACITY:
                    self.end(seq)

    def check_picked(
        self, picked: list[Sequence], decoding: list[Sequence], running: list[Sequence]
    ) -> None:
        total = sum(s.scheduled for s in picked)
        assert total <= self.scheduler.budget
        joined = [s for s in self.scheduler.running if s not in running]
        # A group larger than the limit runs alone.
        assert len(self.scheduler.running) <= self.scheduler.rows or (
            not joined or len(self.scheduler.running) == len(joined[0].group)
        )
        assert all(s.scheduled > 0 for s in picked) and len(set(map(id, picked))) == len(picked)
        assert all(s.scheduled == 1 + len(s.draft.ids) for s in picked if s.draft is not None)
        assert all(s.status is Status.RUNNING for s in picked)
        skipped = [s for s in decoding if s.status is Status.RUNNING and s not in picked]
        if skipped:  # only where decoding alone fills the budget
            assert all(s in decoding for s in picked) and total == self.scheduler.budget

    def copy(self) -> None:
        for source, target in self.blocks.copies:
            for at in range(SIZE):
                self.store[target * SIZE + at] = self.store.get(source * SIZE + at, ())
        self.blocks.copies = []

    def slot(self, seq: Sequence, at: int) -> int:
        return seq.blocks[at // SIZE] * SIZE + at % SIZE

    def write(self, picked: list[Sequence]) -> None:
        paged = [seq for seq in picked if seq.cache is None]
        written = Counter(
            self.slot(seq, at)
            for seq in paged
            for at in range(seq.cached, seq.cached + seq.scheduled)
        )
        assert not written or max(written.values()) == 1
        for seq in paged:
            tokens = seq.ids if seq.draft is None else [*seq.ids, *seq.draft.ids]
            for at in range(seq.cached, seq.cached + seq.scheduled):
                assert self.blocks.references(seq.blocks[at // SIZE]) == 1
                self.store[self.slot(seq, at)] = (seq.salt, *tokens[: at + 1])

    def settle(self, seq: Sequence) -> None:
        """Keep the path to the draft's last token, as the runner does."""
        assert seq.draft is not None
        path = seq.draft.ancestors()[-1][: max(0, CONTEXT - len(seq.ids))]
        seq.ids += [seq.draft.ids[at] for at in path]
        for at in range(seq.cached, seq.cached + len(path)):
            if seq.cache is None:
                self.store[self.slot(seq, at)] = (seq.salt, *seq.ids[: at + 1])
        seq.cached += len(path)
        seq.draft = None

    @invariant()
    def counts_add_up(self) -> None:
        held = Counter(block for seq in self.live for block in seq.blocks)
        assert all(self.blocks.references(block) == n for block, n in held.items())
        assert self.blocks.used == len(held)
        reserved = sum(seq.reserved for seq in self.live)
        assert self.blocks.reserved == reserved
        assert self.blocks.used + self.blocks.free + reserved == CAPACITY
        assert self.blocks.free >= 0
        assert self.blocks.used + self.blocks.idle + reserved <= CAPACITY
        for seq in self.live:
            assert seq.reserved in (0, seq.reserve) and not (seq.reserve and seq.blocks)
            assert {one.status for one in seq.group} <= {seq.status}
            assert seq.cache is None or not seq.preemptions
            assert seq.draft is None or seq.remaining == 1
        assert all(0 <= block < CAPACITY for block in held)
        assert len(self.scheduler.running) + len(self.scheduler.waiting) == len(self.live)

    @invariant()
    def every_entry_is_that_of_its_tokens(self) -> None:
        for seq in self.live:
            assert len(set(seq.blocks)) == len(seq.blocks)
            for at in range(seq.cached if seq.cache is None else 0):
                assert self.store[self.slot(seq, at)] == (seq.salt, *seq.ids[: at + 1])

    @invariant()
    def every_kept_prefix_is_that_of_its_tokens(self) -> None:
        hashes: dict[bytes, tuple[Any, ...]] = {}
        for digest, block in self.blocks._by_hash.items():
            whole = self.store[block * SIZE + SIZE - 1]
            assert hashes.setdefault(digest, whole) == whole
            assert chain_of(whole) == digest

    def teardown(self) -> None:
        for seq in self.live:
            self.scheduler.finish(seq)
        if self.live:
            assert (self.blocks.used, self.blocks.free) == (0, CAPACITY)


def test_random_work_keeps_the_books() -> None:
    run_state_machine_as_test(
        Work, settings=settings(max_examples=300, stateful_step_count=40, deadline=None)
    )


def run(scheduler: Scheduler, steps: int, token: int = 1) -> list[list[tuple[Sequence, int]]]:
    """Steps in which every sequence goes on decoding; who was computed, and how much."""
    log = []
    for _ in range(steps):
        picked = scheduler.schedule()
        log.append([(seq, seq.scheduled) for seq in picked])
        scheduler.advance()
        for seq in picked:
            if seq.remaining == 0:
                seq.ids.append(token)
    return log


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    scheduler = Scheduler(BlockManager(1000, 0), budget=10, rows=8)
    answers = [Sequence([1, 2, 3]) for _ in range(3)]
    for seq in answers:
        scheduler.add(seq)
    run(scheduler, 1)
    long = Sequence(list(range(70)))
    scheduler.add(long)
    for picked in run(scheduler, 10):
        assert [seq for seq, _ in picked[:3]] == answers
        assert picked[3] == (long, 7)
        assert sum(count for _, count in picked) == scheduler.budget


def test_a_budget_below_the_number_of_answers_goes_round() -> None:
    scheduler = Scheduler(BlockManager(1000, 0), budget=5, rows=8)
    answers = [Sequence([n]) for n in range(5)]
    for seq in answers:
        scheduler.add(seq)
    run(scheduler, 1)
    scheduler.budget = 2
    counts = Counter(id(seq) for picked in run(scheduler, 100) for seq, _ in picked)
    assert sorted(counts.values()) == [40] * 5


def test_nobody_starves_under_a_stream_of_short_prompts() -> None:
    blocks = BlockManager(8, 0, SIZE)
    scheduler = Scheduler(blocks, budget=16, rows=8)
    patient = Sequence([1] * 20)
    scheduler.add(patient)
    young: list[Sequence] = []
    for _ in range(200):
        seq = Sequence([1] * 6)
        young.append(seq)
        scheduler.add(seq)
        run(scheduler, 1)
        for done in [s for s in young if len(s.ids) > 9]:
            young.remove(done)
            scheduler.finish(done)
        if len(patient.ids) == 32:
            break
    assert len(patient.ids) == 32
    assert patient.preemptions <= GUARD


def test_what_differs_in_its_salt_shares_nothing() -> None:
    salts = [salt("m"), salt("n"), salt("m", "a"), salt("m", "", "a"), salt("m", "", "", "a")]
    assert len(set(salts)) == 5
    blocks = BlockManager(100, 100, SIZE)
    scheduler = Scheduler(blocks, budget=100, rows=8)
    ids = list(range(17))
    reused = []
    for root in [*salts, *salts]:
        seq = Sequence(list(ids), salt=root)
        scheduler.add(seq)
        run(scheduler, 1)
        reused.append(seq.reused)
        scheduler.finish(seq)
    assert reused == [0] * 5 + [16] * 5
    blocks.clear()
    assert (blocks.idle, blocks.free) == (0, 100)


@pytest.mark.parametrize("keep", [0, 3])
def test_kept_blocks_stay_within_their_number(keep: int) -> None:
    blocks = BlockManager(100, keep, SIZE)
    scheduler = Scheduler(blocks, budget=1000, rows=8)
    for start in (0, 100, 200):
        seq = Sequence(list(range(start, start + 17)))
        scheduler.add(seq)
        run(scheduler, 1)
        scheduler.finish(seq)
        assert blocks.idle <= keep
    latest = Sequence(list(range(200, 217)))
    scheduler.add(latest)
    run(scheduler, 1)
    assert latest.reused == keep * SIZE


def test_blocks_of_one_sequence_lie_side_by_side() -> None:
    scheduler = Scheduler(BlockManager(1000, 0, SIZE), budget=1000, rows=8)
    answers = [Sequence([n] * 7, expected=60) for n in range(6)]
    for seq in answers:
        scheduler.add(seq)
    run(scheduler, 50)
    for seq in answers:
        assert seq.blocks == list(range(seq.blocks[0], seq.blocks[0] + len(seq.blocks)))
