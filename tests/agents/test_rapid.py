"""What target and drafter of RAPID read, against the rules of its sheet."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import rapid
from agents.rapid import Bounds, Selection, joined, select

TEXT = " ".join(f"word{number}" for number in range(400))
BOUNDS = Bounds(context=1000, least=40, shorten=24, threshold=0.3, gate=0.0)


def hit(start: int, end: int, score: float, document: str = "d") -> dict[str, Any]:
    """A passage of the text in characters."""
    return {
        "id": f"{document}#{start}",
        "document_id": document,
        "title": document.upper(),
        "start": start,
        "end": end,
        "text": TEXT[start:end],
        "score": score,
    }


def words(text: str) -> int:
    return len(text.split())


def chosen(hits: list[dict[str, Any]], **bounds: Any) -> Selection:
    given = {name: getattr(BOUNDS, name) for name in Bounds.__slots__}
    return select(hits, words, Bounds(**{**given, **bounds}))


def test_the_draft_context_holds_the_most_similar_passages_in_document_order() -> None:
    hits = [hit(at, at + 200, score) for at, score in ((1800, 0.9), (0, 0.5), (900, 0.7))]
    size = words(TEXT[1800:2000]) + words(TEXT[900:1100])
    found = chosen(hits, least=size)
    assert [one["start"] for one in found.context] == [0, 900, 1800]
    assert [one["start"] for one in found.excerpt] == [900, 1800]
    assert (found.excerpt_tokens, found.confidence, found.fallback) == (size, 0.9, None)


def test_what_is_not_similar_is_never_read_by_the_drafter() -> None:
    found = chosen([hit(0, 100, 0.31), hit(200, 300, 0.29), hit(400, 500, 0.1)], least=10**6)
    assert [one["start"] for one in found.excerpt] == [0]
    assert len(found.context) == 3


def test_the_bound_is_a_part_of_the_context_where_that_is_more() -> None:
    bounds = Bounds(10**6, least=4096, shorten=24, threshold=0.3, gate=0)
    assert bounds.draft(120_000) == 5000
    assert bounds.draft(60_000) == 4096
    assert bounds.draft(1000) == 1000


def test_a_passage_that_is_found_twice_stands_once() -> None:
    found = chosen([hit(0, 200, 0.9), hit(0, 200, 0.9), hit(300, 2000, 0.8)], least=100)
    assert [one["start"] for one in found.context] == [0, 300]
    assert [one["start"] for one in found.excerpt] == [0]


@pytest.mark.parametrize(
    ("hits", "bounds", "why"),
    [
        ([], {}, "the search found no passage"),
        ([hit(0, 99, 0.2)], {}, "a similarity of 0.20, under 0.30"),
        ([hit(0, 99, 0.4), hit(99, 400, 0.1)], {"gate": 0.5}, "a similarity of 0.40, under 0.50"),
        ([hit(0, 2000, 0.9), hit(2000, 2100, 0.8)], {"least": 5}, "no similar passage fits into"),
        ([hit(0, 99, 0.9), hit(99, 200, 0.8)], {"least": 900}, "is no longer than the draft"),
    ],
)
def test_where_drafting_cannot_pay_it_is_said_why(
    hits: list[dict[str, Any]], bounds: dict[str, Any], why: str
) -> None:
    fallback = chosen(hits, **bounds).fallback
    assert fallback is not None and why in fallback


@given(
    places=st.lists(
        st.tuples(st.integers(0, 2500), st.integers(1, 600), st.floats(0, 1)), max_size=12
    ),
    context=st.integers(1, 500),
    least=st.integers(1, 300),
    shorten=st.integers(1, 30),
)
def test_bounds_hold_and_order_is_that_of_the_document(
    places: list[tuple[int, int, float]], context: int, least: int, shorten: int
) -> None:
    hits = [hit(start, min(start + size, len(TEXT)), score) for start, size, score in places]
    bounds = Bounds(context, least, shorten, 0.3, 0.0)
    found = select(hits, words, bounds)
    for read, most in (
        (found.context, context),
        (found.excerpt, bounds.draft(found.context_tokens)),
    ):
        starts = [one["start"] for one in read]
        assert starts == sorted(starts)
        assert sum(words(one["text"]) for one in read) <= most
        assert len({(one["start"], one["end"]) for one in read}) == len(read)
    assert all(one["score"] >= 0.3 for one in found.excerpt)
    ids = {one["id"] for one in found.context}
    if found.fallback is None:
        assert {one["id"] for one in found.excerpt} <= ids, "the drafter reads nothing else"


@given(
    cuts=st.sets(st.integers(1, len(TEXT) - 1), max_size=8),
    overlaps=st.lists(st.integers(0, 60), min_size=9, max_size=9),
)
def test_overlapping_passages_join_to_the_very_text(cuts: set[int], overlaps: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    spans = [
        (max(low - (over if low else 0), 0), high)
        for low, high, over in zip(edges, edges[1:], overlaps, strict=False)
    ]
    spans.sort()
    whole = joined([hit(start, end, 1.0) for start, end in spans])
    assert whole.replace(rapid.GAP, "") == TEXT


def test_documents_begin_with_their_titles_where_there_are_several() -> None:
    assert joined([hit(0, 5, 1.0), hit(20, 25, 1.0)]) == f"{TEXT[:5]}\n\n{TEXT[20:25]}"
    two = joined([hit(0, 5, 1.0, "a"), hit(6, 11, 1.0, "b")])
    assert two == f"A\n{TEXT[:5]}\n\nB\n{TEXT[6:11]}"


def test_target_and_drafter_get_the_same_words_around_their_texts() -> None:
    long, short = [hit(0, 500, 0.9), hit(600, 900, 0.2)], [hit(0, 500, 0.9)]
    target, drafter = (rapid.prompt("Why $x?", passages) for passages in (long, short))
    assert target[0] == drafter[0]
    assert target[1].content.replace(joined(long), joined(short)) == drafter[1].content
    assert "Why $x?" in drafter[1].content
