"""Lookahead's counted n-grams: equal to a plain trie, bounded, pruned in order, and forgetful."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.native.sequence import Draft
from inference.speculative.branches import Shape, Trie
from inference.speculative.trie import Forest, Node, Stream, Texts
from tests.inference.naive_trie import NaiveForest, NaiveSlot, NaiveTrie, Path, pieces

END, STOP = 0, 1
WEIGHTS = (1 - 1e-4, 1e-2, 1e-4)
TEXT = st.lists(st.integers(0, 5), max_size=40)
TEXTS = st.lists(TEXT, max_size=4)
CAPS = st.fixed_dictionaries(
    {"tree_nodes": st.integers(1, 12), "nodes": st.integers(8, 60), "sweep": st.integers(1, 5)}
)


def paths(draft: Draft) -> list[Path]:
    """The draft's tokens as paths from the root."""
    return [tuple(draft.ids[at] for at in line) for line in draft.ancestors()]


def texts(*given: Sequence[int], ends: frozenset[int] = frozenset()) -> Texts:
    """An index of texts named by their places."""
    found = Texts(ends)
    for place, text in enumerate(given):
        found.put(place, text)
    return found


def forest(*given: Sequence[int], depth: int = 8, **options: Any) -> Forest:
    """A forest that took whole texts."""
    found = Forest(depth, **options)
    for text in given:
        Stream(found).put(text)
    return found


def walk(root: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    for token, child in root.below.items():
        yield (*path, token), child
        yield from walk(child, (*path, token))


def counted(trees: Forest) -> dict[Path, float]:
    """A forest's counts by path."""
    found = [walk(tree, (token,)) for token, tree in trees.trees.items()]
    return {path: node.count for one in found for path, node in one}


@given(
    prompt=TEXT,
    references=TEXTS,
    outputs=TEXTS,
    query=TEXT,
    look=st.integers(1, 4),
    ids=st.integers(2, 20),
    depth=st.integers(0, 6),
    share=st.integers(0, 10),
    stops=st.sampled_from([frozenset(), frozenset({STOP})]),
)
def test_retrieval_equals_the_plain_trie(
    prompt: list[int],
    references: list[list[int]],
    outputs: list[list[int]],
    query: list[int],
    look: int,
    ids: int,
    depth: int,
    share: int,
    stops: frozenset[int],
) -> None:
    ends, windows = frozenset({END}), depth + look
    plain = [NaiveSlot(windows, ends), NaiveSlot(windows, ends), NaiveSlot(windows, ends, stops)]
    for slot, given_ in zip(plain, ([prompt], references, outputs), strict=True):
        for text in given_:
            slot.put(text)
    naive = NaiveTrie(list(zip(plain, WEIGHTS, strict=True)), look, stops)
    slots = (
        texts(prompt, ends=ends),
        texts(*references, ends=ends),
        forest(*outputs, depth=windows, ends=ends, stops=stops),
    )
    trie = Trie(list(zip(slots, WEIGHTS, strict=True)), look, stops)
    share = min(share, ids)
    draft = trie.hier(query, Shape(ids, depth, share))
    assert paths(draft) == naive.hier(query, ids, depth, share)
    assert paths(trie.one(query, Shape(ids, depth, share))) == naive.one(query, ids, depth)
    assert len(draft.ids) < ids
    assert max(draft.depths(), default=0) <= depth
    inserted = [p for t in (prompt, *references, *outputs) for _, p in pieces(t, ends)]
    for path in paths(draft):
        behind = (query[-1], *path)
        assert any(
            text[at : at + len(behind)] == behind for text in inserted for at in range(len(text))
        )


@given(given_=st.lists(st.lists(st.integers(0, 7), max_size=60), max_size=5), caps=CAPS)
def test_a_growing_forest_is_pruned_as_the_plain_trie(
    given_: list[list[int]], caps: dict[str, int]
) -> None:
    ends, stops = frozenset({END}), frozenset({STOP})
    grown = Forest(4, ends=ends, stops=stops, **caps)
    plain = NaiveForest(
        4, ends, stops, tree_nodes=caps["tree_nodes"], most=caps["nodes"], sweep=caps["sweep"]
    )
    for text in given_:
        stream = Stream(grown)
        for token in text:
            stream.put([token])
            plain.append(token)
            assert counted(grown) == dict(plain.counts)
            assert grown.nodes == len(plain.counts) <= caps["nodes"]
            assert all(tree.nodes == len(plain.nodes(t)) for t, tree in grown.trees.items())
        plain.append(END)  # the next text begins anew


@given(given_=st.lists(st.integers(0, 3), max_size=200), rounds=st.integers(1, 4))
def test_the_rare_goes_first_and_the_popular_decays(given_: list[int], rounds: int) -> None:
    grown = forest(given_, depth=3)
    before = counted(grown)
    for _ in range(rounds):
        grown._prune(list(grown.trees.values()))
    after = counted(grown)
    dropped = [count for path, count in before.items() if path not in after]
    kept = [before[path] for path in after]
    assert max(dropped, default=0) <= 2 ** (rounds - 1) < min(kept, default=math.inf)
    assert all(after[path] == before[path] / 2**rounds for path in after)
    assert grown.nodes == len(after)
    assert all(tree.below for tree in grown.trees.values()), "an empty tree remains"


@given(st.lists(st.integers(2, 9), max_size=300), st.integers(1, 12), st.integers(1, 5))
def test_a_sweep_leaves_every_tree_within_its_cap(
    given_: list[int], tree_nodes: int, sweep: int
) -> None:
    grown = Forest(4, tree_nodes=tree_nodes, sweep=sweep)
    stream = Stream(grown)
    for token in given_:
        stream.put([token])
        changed = [tree for tree in grown.trees.values() if tree.fresh]
        assert len(changed) < sweep
        # One that did not change since the last sweep fits.
        others = [tree for tree in grown.trees.values() if not tree.fresh]
        assert max((tree.nodes for tree in others), default=0) <= tree_nodes


@given(TEXTS, st.data())
def test_a_removed_text_leaves_no_trace(given_: list[list[int]], data: st.DataObject) -> None:
    held = texts(*given_, ends=frozenset({END}))
    gone = data.draw(st.sets(st.sampled_from(range(len(given_))))) if given_ else set()
    for place in gone:
        held.remove(place)
    fresh = Texts(frozenset({END}))
    for place, text in enumerate(given_):
        if place not in gone:
            fresh.put(place, text)
    assert vars(held) == vars(fresh)


def test_a_text_of_the_same_name_takes_the_place_of_the_first() -> None:
    held = Texts()
    held.put("page", [2, 3, 4])
    held.put("page", [2, 5, 6])
    assert vars(held)["_ids"] == [-1, 2, 5, 6, -1]


@given(
    st.lists(st.integers(2, 4), min_size=2, max_size=60),
    st.lists(st.integers(2, 4), min_size=2, max_size=60),
    st.integers(2, 12),
)
def test_what_was_read_goes_before_what_was_emitted(
    prompt: list[int], output: list[int], ids: int
) -> None:
    slots = (texts(prompt), texts(), forest(output))
    trie = Trie(list(zip(slots, WEIGHTS, strict=True)))
    query = prompt[:1]
    draft = trie.hier(query, Shape(ids, 3, ids // 2))
    below: dict[int, list[int]] = {}
    for path, parent in zip(paths(draft), draft.parents, strict=True):
        read = (*query, *path)
        below.setdefault(parent, []).append(
            sum(tuple(prompt[at : at + len(read)]) == read for at in range(len(prompt)))
        )
    for counts in below.values():
        assert counts == sorted(counts, reverse=True), "counts of the output outweigh the prompt's"


def test_slots_weigh_in_their_order() -> None:
    prompt, reference = texts([2, 3, 2, 3]), texts([2, 4] * 20)
    trie = Trie(list(zip((prompt, reference, forest([2, 5] * 20)), WEIGHTS, strict=True)))
    assert paths(trie.hier([2], Shape(4, 1, 0))) == [(3,), (4,), (5,)]
    assert paths(trie.one([2], Shape(4, 1, 0))) == [(3,)]


def test_ties_go_to_the_latest() -> None:
    trie = Trie(((texts([2, 3, 9, 2, 4, 9, 2, 5]), 1.0), (forest(), 1e-4)))
    assert paths(trie.hier([2], Shape(4, 1, 0))) == [(5,), (4,), (3,)]
    emitted = Trie(((texts(), 1.0), (forest([2, 3, 9, 2, 4]), 1e-4)))
    assert paths(emitted.hier([2], Shape(4, 1, 0))) == [(4,), (3,)]


def test_a_shorter_query_is_asked_where_the_longer_says_little() -> None:
    known = [7, 2, 3, 9, 8, 2, 4, 5, 6]
    trie = Trie(((texts(known), 1.0), (forest(), 1e-4)))
    # Behind 7 2 stand six tokens, which is as long as a branch of 5.
    assert paths(trie.hier([7, 2], Shape(9, 5, 0)))[0] == (3,)
    assert len({p[0] for p in paths(trie.hier([7, 2], Shape(9, 5, 0)))}) == 1
    # Behind 8 2 stand three, so that what stands behind any 2 is asked for.
    assert {p[0] for p in paths(trie.hier([8, 2], Shape(9, 5, 0)))} == {3, 4}
    # A stop word is not asked alone.
    stopped = Trie(((texts(known), 1.0), (forest(), 1e-4)), stops=frozenset({2}))
    assert {p[0] for p in paths(stopped.hier([8, 2], Shape(9, 5, 0)))} == {4}
    assert not stopped.hier([2], Shape(9, 5, 0)).ids


@given(TEXT, st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(2, 20))
def test_chains_side_by_side_are_the_branches_of_the_tree(
    prompt: list[int], query: list[int], ids: int
) -> None:
    trie = Trie(((texts(prompt), 1.0), (forest(), 1e-4)))
    tree, flat = trie.hier(query, Shape(ids, 4, 0)), trie.par(query, Shape(ids, 4, 0))
    assert len(flat.ids) < ids
    leaves = [p for at, p in enumerate(paths(tree)) if at not in tree.parents]
    chains = [p for at, p in enumerate(paths(flat)) if at not in flat.parents]
    assert all(flat.parents.count(at) <= 1 for at in range(len(flat.ids)))
    whole = chains[:-1] if sum(map(len, leaves)) >= ids else chains
    assert whole == leaves[: len(whole)]
    for chain, leaf in zip(chains, leaves, strict=False):
        assert chain == leaf[: len(chain)]


def test_a_cut_tree_keeps_the_best_chain() -> None:
    prompt = [2, 3, 4, 5, 9, 2, 3, 4, 6, 9, 2, 7]
    trie = Trie(((texts(prompt), 1.0), (forest(), 1e-4)))
    draft = trie.hier([2], Shape(12, 3, 0))
    best = trie.one([2], Shape(12, 3, 0))
    for count in range(1, 4):
        assert draft.first(count) == best.first(count)


def test_only_the_latest_occurrences_are_counted() -> None:
    held = Texts(most=3)
    held.put(0, [2, 3] * 4 + [2, 4])
    for query in ([2], [3, 2]):
        assert {child[0]: child[1] for child in held.below(held.find(query) or [])} == {3: 2, 4: 1}


@pytest.mark.parametrize("seed", range(3))
def test_a_long_text_is_counted_by_occurrences(seed: int) -> None:
    draw = random.Random(seed)
    text = [draw.randrange(30) for _ in range(2000)]
    held = texts(text)
    plain = NaiveSlot(3)
    plain.put(text)
    for path in draw.sample(sorted(plain.counts), 200):
        at = held.find(path[:-1])
        assert at is not None
        assert {token: n for token, n, _, _ in held.below(at)}[path[-1]] == plain.counts[path]
