"""The switch of drafting: steps are told apart by their size, and what is lost stays bounded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inference.speculative.switch import Costs, Record, Switch


def test_steps_are_told_apart_by_their_rows() -> None:
    costs = Costs()
    assert costs.seconds(1) is None
    for rows in (1, 1, 9, 17, 1):
        costs.add(rows, 0.02 + 0.001 * rows)
    assert costs.seconds(1) == pytest.approx(0.021)
    assert costs.seconds(16) == pytest.approx(0.036)


def test_what_plain_steps_take_is_known_without_a_draft() -> None:
    costs = Costs()
    costs.add(4, 0.03)
    assert costs.seconds(4) == pytest.approx(0.03)
    assert costs.seconds(1) is None, "no step was of that size"


@pytest.mark.parametrize("rows", [2, 3, 9])
def test_a_draft_after_a_long_pause_counts_however_small(rows: int) -> None:
    costs, switch, lost, drafts = Costs(), Switch(), 0.0, 0
    for _ in range(2000):
        if switch.on():
            costs.add(rows, 1.0)
            switch.drafted(1, 4.0, costs.seconds(1))
            lost, drafts = lost + 3.0, drafts + 1
        else:
            costs.add(1, 1.0)
    assert drafts > 10
    assert lost <= 0.05 * (2000 + lost) + 3.0


def test_what_a_drafter_did_for_nothing_counts() -> None:
    """A drafter may read a long prompt in pieces before its first draft, or never get to one."""
    record = Record()
    for seconds, limit in ((10.0, 10.0), (10.0, 0.0)):
        switch, spent = Switch(record), 0.0
        for _ in range(100):
            if switch.on():
                switch.missed(seconds, 1.0)
                spent += seconds
        switch.end()
        assert spent == limit, "once, and then it is known"
    switch = Switch(record)
    assert any(switch.on() for _ in range(800)), "a long answer can afford it"


def test_looking_up_in_vain_is_cheap_and_goes_on() -> None:
    switch = Switch()
    asked = 0
    for _ in range(300):
        if switch.on():
            switch.missed(0.01, 1.0)
            asked += 1
    assert asked >= 298 and not switch.suspended


@pytest.mark.parametrize("dear", [1.05, 1.3, 3.0])
@pytest.mark.parametrize("length", [20, 60, 400])
def test_the_switch_bounds_what_is_lost(dear: float, length: int) -> None:
    switch = Switch()
    spent = 0.0
    for _ in range(length):
        if switch.on():
            switch.drafted(1, dear, 1.0)
            spent += dear
        else:
            spent += 1.0
    assert spent <= length / 0.9 + dear - 1
    assert spent > length, "it tries"


def test_the_switch_is_on_where_drafts_pay_again() -> None:
    switch = Switch()
    drafts: list[bool] = []
    for at in range(400):
        drafts.append(switch.on())
        if drafts[-1]:  # three times as dear, until the text turns into one that can be copied
            switch.drafted(1 if at < 300 else 6, 3.0, 1.0)
    assert not drafts[0] and sum(drafts[:300]) < 20
    assert switch.suspended >= 3
    assert all(drafts[-60:])
    again = 0
    for _ in range(100):
        if switch.on():
            switch.drafted(1, 3.0, 1.0)
            again += 1
    assert again < 40, "what was won is used up"


def together(gains: Sequence[int], extra: float, steps: int = 400) -> tuple[float, list[int], int]:
    """Seconds, tokens of each and drafts of a batch: a draft takes `extra`, for everyone."""
    switches = [Switch() for _ in gains]
    spent, given, drafts = 0.0, [0] * len(gains), 0
    for _ in range(steps):
        welcome = all(one.patient for one in switches)
        drafting = [one.on(welcome) for one in switches]
        seconds = 1.0 + extra * sum(drafting)
        for at, one in enumerate(switches):
            if drafting[at]:
                one.drafted(gains[at], seconds, 1.0)
            else:
                one.waited(seconds - 1.0)
            given[at] += gains[at] if drafting[at] else 1
        spent += seconds
        drafts += sum(drafting)
    return spent, given, drafts


@pytest.mark.parametrize("extra", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("width", [1, 4, 16])
def test_a_batch_does_not_lose_what_each_of_it_may_lose(width: int, extra: float) -> None:
    spent, _, drafts = together([1] * width, extra)
    assert 400 < spent <= 400 / 0.92 + width * extra
    assert drafts


@pytest.mark.parametrize("extra", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("gains", [(1, 1, 4, 6), (1, 6, 6, 6, 6, 6, 6, 6), (2, 1), (1,)])
def test_nobody_waits_for_the_drafts_of_others_beyond_a_share(
    gains: tuple[int, ...], extra: float
) -> None:
    """Drafts of some give many tokens a step, drafts of others nothing."""
    spent, given, drafts = together(gains, extra)
    assert spent <= min(given) / 0.9 + extra * len(gains)
    assert drafts > 10, "but they draft"


def test_a_batch_drafts_where_all_gain() -> None:
    spent, given, _ = together([3] * 8, 0.1)
    assert min(given) > 1.5 * spent


def answered(record: Record, length: int, dear: float, tokens: int = 1) -> float:
    """Seconds of an answer whose plain steps take one."""
    switch, spent, given = Switch(record), 0.0, 0
    while given < length:
        if switch.on():
            switch.drafted(tokens, dear, 1.0)
            spent, given = spent + dear, given + tokens
        else:
            spent, given = spent + 1.0, given + 1
    return spent


@pytest.mark.parametrize("dear", [1.3, 3.0, 20.0])
@pytest.mark.parametrize("length", [5, 60, 400])
def test_what_was_lost_before_is_not_risked_again(dear: float, length: int) -> None:
    """Even the first draft of an answer must fit into what it may lose."""
    record = Record()
    answered(record, 60, dear)
    assert answered(record, length, dear) <= length / 0.9


@pytest.mark.parametrize("dear", [1.3, 3.0])
def test_a_drafter_that_has_mostly_lost_may_lose_less(dear: float) -> None:
    record = Record()
    answered(record, 400, dear)
    assert record.losing
    assert 2000 < answered(record, 2000, dear) <= 2000 / 0.975 + dear


def test_a_drafter_that_pays_is_not_made_to_wait() -> None:
    record = Record()
    answered(record, 60, 3.0, tokens=6)
    record.add(2.0, 1.0, first=True)  # the first draft of an answer often finds nothing yet
    assert record.price(first=True) == 0
    assert answered(record, 12, 3.0, tokens=6) == pytest.approx(1 + 2 * 3.0)
