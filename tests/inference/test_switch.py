"""The switch of drafting: steps are told apart by their size, and what is lost stays bounded."""

from __future__ import annotations

import pytest

from inference.speculative.switch import Costs, Switch


def test_steps_are_told_apart_by_their_rows() -> None:
    costs = Costs()
    assert costs.seconds(1) is None
    for rows in (1, 1, 9, 17, 1):
        costs.add(rows, 0.02 + 0.001 * rows)
    assert costs.seconds(1) == pytest.approx(0.021)
    assert costs.seconds(16) == pytest.approx(0.036)


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
