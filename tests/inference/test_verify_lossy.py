"""Rules that change the distribution do it as their papers say: Medusa's and RAPID's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pytest
import torch

from inference import SamplingParams
from inference.native.sampling import draw, process
from inference.native.sequence import Draft
from inference.speculative.verify import (
    Case,
    RapidPaper,
    Rejection,
    Rule,
    Tail,
    Tilted,
    Typical,
    Verdict,
)
from tests.inference.exact import NARROW, Leaf, World, draws, drive, softmax, spread

PAIRS = 2000
ETAS = (0.0, 5.0, 10.0, 20.0)
PRINTED = {  # the method's sheet: eta -> mean TV(output, p), mean TV(output, p_hat), share of pairs
    0.0: (0.0, 0.0, 0.0),
    5.0: (0.165, 0.067, 0.999),
    10.0: (0.175, 0.089, 0.998),
    20.0: (0.175, 0.101, 0.999),
}
Mode = Literal["tilted-exact", "paper"]


def pairs(temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [pairs, 8] of a target and of a drafter that is like it, and the target's p, q."""
    chance = np.random.default_rng(0)
    target = chance.normal(0, 2, (PAIRS, 8))
    drafter = target + chance.normal(0, 1, (PAIRS, 8))
    return target / temperature, softmax(drafter / temperature)


def tilt(z: np.ndarray, q: np.ndarray, eta: float, tail: Tail, factor: float = 0.1) -> np.ndarray:
    """p_hat [..., 8] of logits that hold the temperature already (Eq. 6 and 9)."""
    p = softmax(z)
    if tail == "repo":
        spared = q < factor * q.max(-1, keepdims=True)
        return softmax(z + np.where(spared, 0.0, eta * (q - p)))
    raised = np.exp(z - z.max(-1, keepdims=True)) * np.exp(eta * (q - p))
    hat = raised / raised.sum(-1, keepdims=True)
    hat = np.where(hat < factor * hat.max(-1, keepdims=True), p, hat)
    return hat / hat.sum(-1, keepdims=True)


def rest(mode: Mode, p: np.ndarray, hat: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What is left after a rejection, not normalised; p where nothing is."""
    found = hat - q if mode == "tilted-exact" else np.maximum(p - hat, p - q)
    found = np.maximum(found, 0)
    return np.where(found.sum(-1, keepdims=True) > NARROW, found, p)


def output(mode: Mode, p: np.ndarray, hat: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What is said at a drafted position: accepted, or drawn from what is left."""
    accepted = np.minimum(q, hat)
    left = rest(mode, p, hat, q)
    refused = 1 - accepted.sum(-1, keepdims=True)
    return accepted + refused * left / left.sum(-1, keepdims=True)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation."""
    return np.abs(a - b).sum(-1) / 2


@pytest.mark.parametrize("eta", ETAS)
def test_the_paper_mode_has_the_total_variations_of_the_sheet(eta: float) -> None:
    """Within 0.008, four times what 2,000 pairs scatter by; the sheet does not say its pairs."""
    z, q = pairs()
    p, hat = softmax(z), tilt(z, q, eta, "paper")
    told = output("paper", p, hat, q)
    to_p, to_hat, negative = PRINTED[eta]
    assert distance(told, p).mean() == pytest.approx(to_p, abs=0.008 if eta else 1e-12)
    assert distance(told, hat).mean() == pytest.approx(to_hat, abs=0.008 if eta else 1e-12)
    share = (np.minimum(q, hat) > p + 1e-12).any(-1).mean()
    assert share == pytest.approx(negative, abs=0.002)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("tail", ["paper", "repo"])
@pytest.mark.parametrize("eta", ETAS)
def test_tilted_exact_gives_p_hat_and_lossless_gives_p(
    eta: float, tail: Tail, temperature: float
) -> None:
    z, q = pairs(temperature)
    p, hat = softmax(z), tilt(z, q, eta, tail)
    assert distance(output("tilted-exact", p, hat, q), hat).max() < 1e-12
    if eta == 0:
        assert distance(hat, p).max() < 1e-12
        assert distance(output("paper", p, hat, q), p).max() < 1e-12
    else:
        assert distance(hat, p).mean() > 0.05


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("tail", ["paper", "repo"])
def test_the_target_of_the_rule_is_the_one_of_the_equations(tail: Tail, temperature: float) -> None:
    """From the raw logits: z_hat = z + eta * T * (q - p), and that over T."""
    raw = np.random.default_rng(3).normal(0, 2, (200, 8)).astype(np.float32)
    _, q = pairs(temperature)
    sampling = SamplingParams(temperature=temperature)
    for row, drafted in zip(raw, q, strict=False):
        processed = process(torch.from_numpy(row), sampling)
        found = Tilted(10.0, tail).target(processed, torch.from_numpy(drafted)).numpy()
        z = row.astype(np.float64)
        p = softmax(z / temperature)
        np.testing.assert_allclose(
            found, tilt(processed.numpy(), drafted, 10.0, tail), rtol=0, atol=1e-12
        )
        shift = 10.0 * temperature * (drafted - p)
        if tail == "repo":
            shift[drafted < 0.1 * drafted.max()] = 0
            wanted = softmax((z + shift) / temperature)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def ways(
    world: World, mode: Mode, eta: float, tail: Tail, leaf: Leaf, length: int
) -> Iterator[Leaf]:
    """RAPID's chain: every way through a step."""
    prefix = leaf.said
    p = world.p(prefix)
    if len(leaf.path) == length:
        yield from draws(leaf, p)
        return
    q, node = world.q(prefix), len(leaf.path)
    hat = tilt(world.logits(prefix).numpy(), q, eta, tail)
    left = rest(mode, p, hat, q)
    for token in np.flatnonzero(q):
        tried = leaf.drew(node, int(token), q)
        chance = min(1.0, float(hat[token] / q[token]))
        if chance > 0:
            passed = tried.where(0.0, chance)
            onward = Leaf(
                passed.tokens, passed.rows, passed.cells, (*passed.path, node), -1, passed.mass
            )
            yield from ways(world, mode, eta, tail, onward, length)
        if 1 - chance > NARROW:
            yield from draws(tried.where(chance, 1.0), left)


@pytest.mark.parametrize("zeros", [0, 3])
@pytest.mark.parametrize("tail", ["paper", "repo"])
@pytest.mark.parametrize("eta", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("mode", ["tilted-exact", "paper"])
def test_steps_of_the_rules_are_those_of_the_equations(
    mode: Mode, eta: float, tail: Tail, zeros: int
) -> None:
    world = World(int(eta) + zeros, zeros=zeros)
    rule: Rule = Tilted(eta, tail) if mode == "tilted-exact" else RapidPaper(eta, tail)
    leaves = list(ways(world, mode, eta, tail, Leaf(), 2))
    for at in np.random.default_rng(1).permutation(len(leaves))[:150]:
        drive(rule, world.logits, world.size, (-1, 0), leaves[at], int(at))
    found = spread(world, leaves, 3)
    if eta == 0:
        np.testing.assert_allclose(found, world.joint((), 3), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sum((1, 2)), said(mode, world, eta, tail, ()), atol=1e-9)
    assert (found.sum((1, 2))[world.p(()) == 0] == 0).all()
    # Behind an accepted token the second position is one of a draft, too.
    for token in range(world.size):
        behind = [leaf for leaf in leaves if leaf.path and leaf.tokens[0] == token]
        second = np.zeros(world.size)
        for leaf in behind:
            second[(*leaf.said, leaf.token)[1]] += leaf.mass
        if behind:
            wanted = said(mode, world, eta, tail, (token,))
            np.testing.assert_allclose(second / second.sum(), wanted, rtol=0, atol=1e-9)


def said(mode: Mode, world: World, eta: float, tail: Tail, prefix: tuple[int, ...]) -> np.ndarray:
    """What a mode promises at a drafted position."""
    hat = tilt(world.logits(prefix).numpy(), world.q(prefix), eta, tail)
    if mode == "tilted-exact":
        return hat
    return output(mode, world.p(prefix), hat, world.q(prefix))


def chain(
    rule: Rule, logits: Sequence[Sequence[float]], q: Sequence[Sequence[float]], ids: Sequence[int]
) -> Verdict:
    """A greedy step over a chain."""
    draft = Draft(tuple(ids), tuple(range(-1, len(ids) - 1)))
    rows = torch.tensor(q, dtype=torch.float64)
    table = torch.tensor(logits)
    return rule.verify(Case(draft, lambda node, _: table[node + 1], True, 0, 0, rows))


def test_greedy_rapid_follows_the_tilted_argmax_while_it_is_the_draft() -> None:
    # p = (0.5, 0.4, 0.1): half of q - p takes the second over the first.
    z = [math.log(0.5), math.log(0.4), math.log(0.1)]
    q = [0.1, 0.85, 0.05]
    assert math.log(0.4) + 0.5 * 0.45 > math.log(0.5) - 0.5 * 0.4
    for rule in (Tilted(0.5), RapidPaper(0.5)):
        assert chain(rule, [z, z, z], [q, q], [1, 1]) == Verdict((0, 1), 0)  # p behind the draft
    # The draft is the target's own argmax, which the tilt refuses.
    assert chain(Tilted(0.5), [z, z], [q], [0]) == Verdict((), 1)
    assert chain(RapidPaper(0.5), [z, z], [q], [0]) == Verdict((), 0)
    # Nothing is tilted: exact match.
    for plain in (Tilted(0.0), RapidPaper(0.0), Rejection()):
        assert chain(plain, [z, z], [q], [1]) == Verdict((), 0)
        assert chain(plain, [z, z], [q], [0]) == Verdict((0,), 0)


def test_the_same_context_for_both_accepts_everything_at_any_eta() -> None:
    world = World(12)
    p = torch.from_numpy(world.p(()))
    for eta in ETAS:
        for rule in (Tilted(eta), Tilted(eta, "repo"), RapidPaper(eta)):
            for seed in range(40):
                token = draw(p, seed / 40)
                case = Case(
                    Draft((token,), (-1,)), lambda _, __: world.logits(()), False, seed, 0, p[None]
                )
                assert rule.verify(case).path == (0,)


def test_rapid_refuses_siblings_and_drafts_without_rows() -> None:
    flat = torch.zeros(4)
    rows = torch.full((2, 4), 0.25, dtype=torch.float64)
    two = Case(Draft((0, 1), (-1, -1)), lambda _, __: flat, False, 0, 0, rows)
    with pytest.raises(AssertionError, match="chains, not 2 siblings"):
        Tilted(5.0).verify(two)
    with pytest.raises(AssertionError, match="no rows"):
        Tilted(5.0).verify(Case(Draft((0,), (-1,)), lambda _, __: flat, False, 0, 0))


def typical(
    rule: Typical, table: dict[int, Sequence[float]], draft: Draft, seed: int = 0
) -> Verdict:
    """A sampled step; `table` are the target's probabilities behind each node."""
    rows = {node: torch.tensor(row, dtype=torch.float64).log() for node, row in table.items()}
    return rule.verify(Case(draft, lambda node, _: rows[node], False, seed, 0))


def test_typical_takes_what_is_over_the_bound_worked_out_by_hand() -> None:
    # H(0.7, 0.2, 0.1) = 0.8018, exp(-H) = 0.4485: epsilon = 0.09 is below 0.3 * 0.4485 = 0.1346.
    sharp = (0.7, 0.2, 0.1)
    for token in range(3):
        assert typical(Typical(), {-1: sharp, 0: sharp}, Draft((token,), (-1,))).path == (0,)
    # Of eight equal ones each has 0.125, over 0.3 / 8; of two with 0.5, over 0.09.
    for count in (8, 2):
        flat = (1 / count,) * count
        assert typical(Typical(), {-1: flat, 0: flat}, Draft((1,), (-1,))).path == (0,)
    # Epsilon decides: 0.1 is over 0.09 but not over 0.11.
    assert typical(Typical(0.11), {-1: sharp, 0: sharp}, Draft((2,), (-1,))).path == ()
    # Delta decides: 0.2 * 0.4485 = 0.0897 against 0.1, 0.25 * 0.4485 = 0.1121.
    draft = Draft((2,), (-1,))
    assert typical(Typical(0.5, 0.2), {-1: sharp, 0: sharp}, draft).path == (0,)
    assert typical(Typical(0.5, 0.25), {-1: sharp, 0: sharp}, draft).path == ()


def test_typical_does_not_have_its_two_defaults_swapped() -> None:
    """The released helper's own defaults are (0.3, 0.09), its caller's (0.09, 0.3)."""
    row = (0.92, 0.08)  # exp(-H) = 0.757: bounds min(0.09, 0.227), and swapped min(0.3, 0.0681)
    draft = Draft((1,), (-1,))
    assert typical(Typical(), {-1: row, 0: row}, draft).path == ()
    assert typical(Typical(0.3, 0.09), {-1: row, 0: row}, draft).path == (0,)
    assert (Typical().epsilon, Typical().delta) == (0.09, 0.3)


def test_typical_takes_the_longest_path_and_of_equals_the_likeliest() -> None:
    row = (0.5, 0.3, 0.15, 0.05)
    table = dict.fromkeys(range(-1, 6), row)
    # 0 and then nothing it takes; 2 -> 1 and 1 -> 1 are longer, of which 1 -> 1 is likelier.
    draft = Draft((0, 2, 1, 3, 1, 1), (-1, -1, -1, 0, 1, 2))
    assert typical(Typical(), table, draft).path == (2, 5)
    # A longer path wins over a likelier one.
    draft = Draft((0, 0, 2, 2, 2), (-1, 0, -1, 2, 3))
    assert typical(Typical(), table, draft).path == (2, 3, 4)
    # What stands behind a refused token is not looked at.
    assert typical(Typical(), {-1: row}, Draft((3, 0), (-1, 0))).path == ()


def test_typical_goes_on_from_the_target_behind_its_path() -> None:
    table = {-1: (0.5, 0.5, 0.0), 0: (0.0, 0.0, 1.0)}
    assert typical(Typical(), table, Draft((0,), (-1,))) == Verdict((0,), 2)
    tokens = {typical(Typical(), table, Draft((2,), (-1,)), seed).token for seed in range(40)}
    assert tokens == {0, 1}


def test_greedy_typical_is_exact_match() -> None:
    table = torch.tensor([[2.0, 1.9, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    case = Case(Draft((1, 2), (-1, 0)), lambda node, _: table[node + 1], True, 0, 0)
    assert Typical().verify(case) == Verdict((), 0)
