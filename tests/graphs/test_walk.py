"""Neighbours and paths against plain enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.errors import GraphInputError, UnknownEntity
from graphs.facts import Fact
from graphs.store import GraphStore
from graphs.walk import Direction, Leg, Walker

NODES = list("abcdef")
FACTS = st.lists(
    st.builds(Fact, st.sampled_from(NODES), st.sampled_from(["r", "s"]), st.sampled_from(NODES)),
    min_size=1,
    max_size=14,
    unique_by=lambda fact: fact.key,
)


def graph_of(facts: list[Fact]) -> networkx.MultiDiGraph:
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(NODES)
    for row, fact in enumerate(facts):
        graph.add_edge(fact.head, fact.tail, key=fact.relation, row=row)
    return graph


def steps(facts: list[Fact], at: str, direction: Direction) -> Iterator[tuple[int, str]]:
    for row, fact in enumerate(facts):
        if fact.head == at and direction != Direction.IN:
            yield row, fact.tail
        if fact.tail == at and fact.head != at and direction != Direction.OUT:
            yield row, fact.head
        if fact.tail == at == fact.head and direction == Direction.IN:
            yield row, at


def every_path(
    facts: list[Fact], start: str, goal: str, hops: int, direction: Direction
) -> set[tuple[int, ...]]:
    """All simple paths, by trying everything."""
    found: set[tuple[int, ...]] = set()

    def go(at: str, rows: tuple[int, ...], seen: frozenset[str]) -> None:
        if at == goal:
            found.add(rows)
        elif len(rows) < hops:
            for row, other in steps(facts, at, direction):
                if other not in seen:
                    go(other, (*rows, row), seen | {other})

    go(start, (), frozenset({start}))
    return found


@given(FACTS, st.integers(1, 5), st.sampled_from(Direction), st.booleans())
@settings(max_examples=150, deadline=None)
def test_paths_are_all_simple_paths_shortest_first(
    facts: list[Fact], hops: int, direction: Direction, shortest: bool
) -> None:
    expected = every_path(facts, "a", "b", hops, direction)
    if shortest and expected:
        least = min(map(len, expected))
        expected = {path for path in expected if len(path) == least}
    walker = Walker(graph_of(facts), direction=direction)
    found = walker.paths("a", "b", hops, 10_000, shortest=shortest)
    rows = [tuple(leg.row for leg in path) for path in found]
    assert walker.complete
    assert len(rows) == len(set(rows)) and set(rows) == expected
    assert [len(path) for path in rows] == sorted(len(path) for path in rows)
    for path in found:
        ends = ["a", *(leg.to for leg in path)]
        for leg, (here, there) in zip(path, pairwise(ends), strict=True):
            fact = facts[leg.row]
            assert (fact.head, fact.tail) == ((here, there) if leg.forward else (there, here))


@given(FACTS, st.integers(1, 4), st.sampled_from(Direction))
@settings(max_examples=100, deadline=None)
def test_neighbours_are_found_at_their_distance(
    facts: list[Fact], hops: int, direction: Direction
) -> None:
    expected: dict[int, int] = {}
    border = {"a"}
    for hop in range(1, hops + 1):
        reached = set()
        for at in border:
            for row, other in steps(facts, at, direction):
                expected.setdefault(row, hop)
                reached.add(other)
        border = reached
    walker = Walker(graph_of(facts), direction=direction)
    found = walker.near("a", hops, 10_000)
    assert {near.row: near.hop for near in found} == expected
    assert [(near.hop, near.row) for near in found] == sorted((h, r) for r, h in expected.items())
    assert walker.complete
    few = Walker(graph_of(facts), direction=direction).near("a", hops, 2)
    assert few == found[:2]


def test_a_relation_filter_leaves_the_others_out(store: GraphStore) -> None:
    found = store.neighbours("Marie_Curie", 2, relations=["discovered"])
    assert {store.facts[near.row].relation for near in found.near} == {"discovered"}
    assert len(found.near) == 2
    with pytest.raises(GraphInputError, match="unknown relation 'discoverd'; did you mean 'disco"):
        store.neighbours("Marie_Curie", relations=["discoverd"])


def test_directions(store: GraphStore) -> None:
    def around(direction: Direction) -> set[str]:
        found = store.neighbours("Poland", direction=direction).near
        return {store.facts[near.row].head for near in found}

    assert around(Direction.OUT) == set()
    assert around(Direction.IN) == around(Direction.BOTH) == {"Warsaw", "Polonium"}


def test_limits_are_told(store: GraphStore) -> None:
    assert not store.neighbours("Marie_Curie", 1, limit=2).complete
    assert store.neighbours("Otto_Hahn", 3, limit=1).near
    found = store.paths("Marie_Curie", "Poland", limit=1)
    assert len(found.paths) == 1 and not found.complete
    assert store.paths("Marie_Curie", "Otto_Hahn").paths == []
    assert len(store.paths("Marie_Curie", "Poland").paths) == 2


def test_work_is_bounded_in_a_dense_graph() -> None:
    graph = networkx.MultiDiGraph()
    nodes = [f"n{n}" for n in range(60)]
    row = 0
    for one in nodes:
        for other in nodes:
            if one != other:
                graph.add_edge(one, other, key="r", row=row)
                row += 1
    walker = Walker(graph, work=20_000)
    found = walker.paths("n0", "n1", 6, 10**9)
    assert found and not walker.complete
    assert len(found) <= 20_000


@pytest.mark.parametrize("hops", [0, 9, -1])
def test_hops_have_bounds(store: GraphStore, hops: int) -> None:
    with pytest.raises(GraphInputError, match="must be 1 to 8"):
        store.neighbours("Poland", hops)


def test_ends_that_cannot_be(store: GraphStore) -> None:
    with pytest.raises(GraphInputError, match="needs two entities"):
        store.paths("Poland", "Poland")
    with pytest.raises(UnknownEntity, match="no entity 'Atlantis'"):
        store.paths("Poland", "Atlantis")
    with pytest.raises(GraphInputError, match="limit=0"):
        store.paths("Poland", "Paris", limit=0)


def test_networkx_holds_the_facts(store: GraphStore, graph_path: Path) -> None:
    edges = {(h, r, t) for h, t, r in store.graph.edges(keys=True)}
    assert edges == {fact.key for fact in store.facts}
    lengths = networkx.single_source_shortest_path_length(
        store.graph.to_undirected(), "Marie_Curie"
    )
    for goal, length in lengths.items():
        if length:
            (path, *_) = store.paths("Marie_Curie", goal, 8, shortest=True).paths
            assert len(path) == length
            assert isinstance(path[0], Leg) and path[-1].to == goal
