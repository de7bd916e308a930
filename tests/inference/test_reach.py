"""How long drafts are: they follow what is accepted, down where nothing is and up where all is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inference import Request, SamplingParams
from inference.native.engine import NativeEngine
from inference.speculative.lookahead import Lookahead
from inference.speculative.reach import BEYOND, GROWS, Reach


def test_a_draft_that_is_accepted_whole_is_followed_by_a_longer_one() -> None:
    reach, sizes = Reach(), list[int]()
    for _ in range(6):
        sizes.append(reach.most)
        reach.settled(reach.most, whole=True)
    assert all(later >= GROWS * size for size, later in pairwise(sizes))
    assert sizes[-1] > 50


def test_drafts_that_are_refused_become_short() -> None:
    reach = Reach()
    for _ in range(12):
        reach.settled(0, whole=False)
    assert reach.most == BEYOND


@given(st.lists(st.integers(0, 64), max_size=40))
def test_a_draft_is_never_empty_and_bounded_by_what_was_accepted(accepted: list[int]) -> None:
    reach = Reach()
    for one in accepted:
        reach.settled(min(one, reach.most), whole=one >= reach.most)
        assert BEYOND <= reach.most <= GROWS * max(3, *accepted, 64) + BEYOND


def test_the_engine_keeps_to_it(default_engine: NativeEngine) -> None:
    """A text that never ends is copied in few steps, and tokens stay those of plain decoding."""
    plain = Request(
        prompt="1 2 3 4 5 6 7 8 9 " * 6,
        sampling=SamplingParams(max_tokens=96, temperature=0.0),
    )
    drafted = []
    for adaptive in (True, False):
        drafter = Lookahead(adaptive=adaptive)
        (output,) = default_engine.generate([replace(plain, drafter=drafter)])
        drafted.append(output)
    (alone,) = default_engine.generate([plain])
    assert drafted[0].token_ids == drafted[1].token_ids == alone.token_ids
    assert drafted[0].stats.forwards < 0.3 * alone.stats.forwards
    assert "cut" not in drafted[0].notes["drafter"], "nobody else bounded it"
