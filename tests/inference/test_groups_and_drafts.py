"""Groups, forks and drafts in the scheduler: cases that random work seldom comes by."""

from __future__ import annotations

from inference.native.blocks import BlockManager
from inference.native.scheduler import Scheduler
from inference.native.sequence import Draft, Sequence, Status
from tests.inference.test_scheduler import SIZE, run


def grouped(*rows: Sequence) -> tuple[Sequence, ...]:
    for seq in rows:
        seq.group = rows
    return rows


def test_a_row_whose_group_is_preempted_for_it_is_not_computed() -> None:
    scheduler = Scheduler(BlockManager(12, 0, SIZE), budget=100, rows=8)
    old, rows = Sequence([1] * 21), grouped(Sequence([1] * 12), Sequence([1] * 12))
    for seq in (old, *rows):
        scheduler.add(seq)
    run(scheduler, 1)  # every block is taken, and the first of the group needs one more
    assert [seq for seq, _ in run(scheduler, 1)[0]] == [old]
    assert all((seq.status, seq.blocks, seq.preemptions) == (Status.WAITING, [], 1) for seq in rows)


def test_a_group_beyond_the_limit_of_rows_runs_alone() -> None:
    scheduler = Scheduler(BlockManager(100, 0, SIZE), budget=100, rows=2)
    first, three = Sequence([1]), grouped(*(Sequence([1]) for _ in range(3)))
    for seq in (first, *three, last := Sequence([1])):
        scheduler.add(seq)
    assert [seq for seq, _ in run(scheduler, 1)[0]] == [first]
    scheduler.finish(first)
    assert [seq for seq, _ in run(scheduler, 1)[0]] == [*three]
    for seq in three:
        scheduler.finish(seq)
    assert [seq for seq, _ in run(scheduler, 1)[0]] == [last]


def test_a_fork_that_outlives_its_parent_spoils_no_prefix() -> None:
    blocks = BlockManager(10, 10, SIZE)
    scheduler = Scheduler(blocks, budget=100, rows=8)
    parent = Sequence([1, 2, 3, 4, 5])
    scheduler.add(parent)
    run(scheduler, 1)
    child = Sequence([1, 2, 7, 8])
    scheduler.fork(parent, child, 2)
    scheduler.finish(parent)
    run(scheduler, 1)  # writes 7 and 8 where 3 and 4 lay
    again = Sequence([1, 2, 3, 4, 5])
    scheduler.add(again)
    run(scheduler, 1)
    assert again.reused == 0 and not set(again.blocks) & set(child.blocks)


def test_a_draft_gives_way_to_room_and_memory() -> None:
    scheduler = Scheduler(BlockManager(5, 0, SIZE), budget=6, rows=8)
    seq, other = Sequence([1] * 6), Sequence([1] * 3)
    for one in (seq, other):
        scheduler.add(one)
    run(scheduler, 3)
    assert (seq.remaining, seq.cached, other.cached) == (1, 8, 4)  # each needs a block
    seq.draft = Draft((1,) * 20, tuple(range(-1, 19)))
    assert run(scheduler, 1)[0] == [(seq, 4), (other, 1)]  # its last block is full


def test_a_draft_leaves_every_answer_its_row() -> None:
    scheduler = Scheduler(BlockManager(100, 0, SIZE), budget=6, rows=8)
    answers = [Sequence([1]) for _ in range(4)]
    for seq in answers:
        scheduler.add(seq)
    run(scheduler, 1)
    for seq in answers:
        seq.draft = Draft((1,) * 9, (-1,) * 9)
    assert [count for _, count in run(scheduler, 1)[0]] == [3, 1, 1, 1]
