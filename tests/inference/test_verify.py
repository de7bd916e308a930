"""Rules that keep the target's distribution: enumerated exactly, driven, and sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.native.sampling import draw_all
from inference.native.sequence import Draft
from inference.speculative.verify import Match, Rejection, Rule
from tests.inference.chance import DRAWS, chi_square
from tests.inference.exact import Leaf, Scripted, World, drive, matches, rejections, spread

TREES = {
    "nothing": (),
    "one": (-1,),
    "chain": (-1, 0),
    "siblings": (-1, -1),
    "three": (-1, -1, -1),
    "fork": (-1, 0, 0),
    "two lines": (-1, -1, 0, 1),
}


def depth(tree: Sequence[int]) -> int:
    """Most tokens a step over a tree may give."""
    return 1 + max(Draft((0,) * len(tree), tuple(tree)).depths(), default=0)


def check(world: World, tree: Sequence[int], again: bool, driven: int, seed: int) -> None:
    """Whole steps follow the target, and the rule does what was enumerated."""
    leaves = list(rejections(world, tree, Leaf(), again=again))
    length = depth(tree)
    found = spread(world, leaves, length)
    np.testing.assert_allclose(found, world.joint((), length), rtol=0, atol=1e-9)
    picked = np.random.default_rng(seed).permutation(len(leaves))[:driven]
    for at in picked:
        drive(Rejection(), world.logits, world.size, tree, leaves[at], int(at))


@pytest.mark.parametrize("zeros", [0, 4])
@pytest.mark.parametrize("again", [True, False], ids=["with replacement", "without"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_whole_steps_of_rejection_follow_the_target(
    tree: Sequence[int], again: bool, zeros: int
) -> None:
    check(World(len(tree), zeros=zeros), tree, again, driven=250, seed=zeros)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_tree_over_any_world_keeps_the_target(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 4))
    tree = [data.draw(st.integers(-1, at - 1)) for at in range(size)]
    again = data.draw(st.booleans())
    # Without replacement a tree has at most as many siblings as the drafter knows tokens.
    most = max((tree.count(parent) for parent in tree), default=0)
    zeros = data.draw(st.integers(0, 3 if again else 4 - max(most, 1)))
    world = World(data.draw(st.integers(0, 999)), size=4, zeros=zeros)
    check(world, tree, again, driven=30, seed=size)


def test_two_steps_one_behind_the_other_follow_the_target() -> None:
    world, trees = World(11, size=4, zeros=1), ((-1, -1, 0), (-1, 0))
    masses: dict[tuple[int, ...], float] = {}
    for first in rejections(world, trees[0], Leaf(), again=False):
        said = (*first.said, first.token)
        masses[said] = masses.get(said, 0.0) + first.mass
    found = np.zeros((4,) * 6)
    for said, mass in masses.items():
        behind = Behind(world, said)
        rest = spread(behind, rejections(behind, trees[1], Leaf(), again=True), 6 - len(said))
        found[said] += mass * rest
    np.testing.assert_allclose(found, world.joint((), 6), rtol=0, atol=1e-9)


class Behind(World):
    """A world after something was said."""

    def __init__(self, world: World, said: tuple[int, ...]) -> None:
        super().__init__(world.seed, world.size, world.zeros)
        self._said = said

    def _row(self, who: int, prefix: tuple[int, ...]) -> np.ndarray:
        return super()._row(who, self._said + prefix)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_whole_steps_of_match_follow_the_target_whatever_was_drafted(tree: Sequence[int]) -> None:
    world = World(3, zeros=2)
    tokens = np.random.default_rng(4).permutation(world.size)[: len(tree)].tolist()
    leaves = list(matches(world, tree, Leaf(), tokens))
    found = spread(world, leaves, depth(tree))
    np.testing.assert_allclose(found, world.joint((), depth(tree)), rtol=0, atol=1e-9)
    for at, leaf in enumerate(leaves):
        given_ = Leaf(dict(enumerate(tokens)), {}, leaf.cells, leaf.path, leaf.token)
        drive(Match(), world.logits, world.size, tree, given_, at)


def test_dropping_an_unlikely_token_after_it_was_drawn_would_bend_the_distribution() -> None:
    """Why a drafter must settle whether a node is in the draft before it draws it."""
    world = World(5)
    leaves = rejections(world, (-1,), Leaf(), again=True)
    q = world.q(())
    unlikely = {int(token) for token in np.flatnonzero(q < 0.1)}
    kept = [leaf for leaf in leaves if leaf.tokens[0] not in unlikely]
    bent = spread(world, kept, 1 + 1).sum(1) + q[list(unlikely)].sum() * world.p(())
    assert np.abs(bent - world.p(())).max() > 0.01


Drafts = dict[tuple[int, ...], tuple[list[np.ndarray], np.ndarray]]


def drafts(world: World, tree: Sequence[int], again: bool, numbers: np.ndarray) -> Drafts:
    """The drafts that `numbers` [draws, nodes] draw: tokens -> rows, and which draws gave them."""
    found: Drafts = {(): ([], np.arange(len(numbers)))}
    for node, parent in enumerate(tree):
        grown: Drafts = {}
        for tokens, (rows, at) in found.items():
            prefix = () if parent < 0 else (tokens[parent],)
            before = [] if again else [tokens[i] for i in range(node) if tree[i] == parent]
            row = world.without(prefix, before)
            drawn = draw_all(torch.from_numpy(row), numbers[at, node])
            for token in np.unique(drawn):
                grown[*tokens, int(token)] = ([*rows, row], at[drawn == token])
        found = grown
    return found


def sampled(rule: Rule, world: World, tree: Sequence[int], again: bool, seed: int) -> np.ndarray:
    """Counts [size, size] of the first two tokens of DRAWS steps; a short step is continued."""
    numbers = np.random.Generator(np.random.Philox(key=seed)).random((DRAWS, 12))
    shape = (world.size, world.size)
    found, short = np.zeros(shape, dtype=int), np.zeros(world.size, dtype=int)
    for tokens, (rows, at) in drafts(world, tree, again, numbers[:, 6:]).items():
        draft, drawn = Draft(tokens, tuple(tree)), torch.from_numpy(np.stack(rows))
        says = {path: world.logits(tuple(tokens[i] for i in path)) for path in paths(draft)}
        for script in numbers[at, :6].tolist():
            case = Scripted(
                draft, lambda _, path, says=says: says[tuple(path)], False, 0, 0, drawn, {}, script
            )
            verdict = rule.verify(case)
            said = [*(tokens[i] for i in verdict.path), verdict.token]
            if len(said) == 1:
                short[said[0]] += 1
            else:
                found[said[0], said[1]] += 1
    follow = np.random.default_rng(seed)
    for token, count in enumerate(short):
        found[token] += follow.multinomial(count, world.p((token,)))
    return found


def paths(draft: Draft) -> list[tuple[int, ...]]:
    """Every way down a draft that a rule may ask for."""
    return [(), *(tuple(line) for line in draft.ancestors())]


@pytest.mark.parametrize(
    ("tree", "again"), [((-1, 0), True), ((-1, -1, 0), False)], ids=["chain", "tree"]
)
def test_200_000_steps_of_rejection_pass_a_chi_square_test(
    tree: Sequence[int], again: bool
) -> None:
    world = World(21, size=4)
    found = sampled(Rejection(), world, tree, again, seed=77)
    statistic, bound = chi_square(found.ravel(), torch.from_numpy(world.joint((), 2).ravel()))
    assert statistic < bound
