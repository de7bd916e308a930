"""The sampler against probabilities computed independently, and its draws against both."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inference import SamplingParams
from inference.native.sampling import choose, distribution, draw, draw_all, uniform
from tests.inference.chance import chi_square, counts, numbers

LOGITS = np.random.default_rng(7).normal(0, 2, 24)

SETTINGS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=1.8),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=1.0, min_p=0.1),
    SamplingParams(temperature=1.3, top_k=10, top_p=0.85, min_p=0.05, repetition_penalty=1.4),
]


def expected(logits: np.ndarray, params: SamplingParams, seen: tuple[int, ...] = ()) -> np.ndarray:
    """Probabilities by the definitions, one token at a time."""
    scores = [float(x) for x in logits]
    for token in set(seen):
        penalty = params.repetition_penalty
        scores[token] *= penalty if scores[token] < 0 else 1 / penalty
    scores = [s / params.temperature for s in scores]
    alive = sorted(range(len(scores)), key=lambda i: -scores[i])
    if params.top_k is not None:
        alive = alive[: params.top_k]

    def mass(ids: list[int]) -> list[float]:
        top = max(scores[i] for i in ids)
        weights = [math.exp(scores[i] - top) for i in ids]
        return [w / sum(weights) for w in weights]

    kept, total = [], 0.0
    for token, p in zip(alive, mass(alive), strict=True):
        kept.append(token)
        total += p
        if total >= params.top_p:
            break
    alive, masses = kept, mass(kept)
    alive = [t for t, p in zip(alive, masses, strict=True) if p >= params.min_p * max(masses)]
    out = np.zeros(len(scores))
    out[alive] = mass(alive)
    return out


@pytest.mark.parametrize("params", SETTINGS, ids=repr)
def test_draws_follow_the_exact_probabilities(params: SamplingParams) -> None:
    seen = (0, 3, 5, 11)
    found = counts(distribution(torch.tensor(LOGITS, dtype=torch.float32), params, seen))
    statistic, bound = chi_square(found, expected(LOGITS, params, seen))
    assert statistic < bound
    wrong, bound = chi_square(found, expected(LOGITS * 1.05, params, seen))
    assert wrong > bound  # the test has the power to fail


def test_choosing_is_drawing_at_the_number_of_seed_and_position() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float32)
    for params in SETTINGS:
        mass = distribution(logits, params, (3,))
        chosen = [choose(logits, params, seed, at, (3,)) for seed in (0, 17) for at in range(40)]
        singly = [draw(mass, uniform(seed, at)) for seed in (0, 17) for at in range(40)]
        at_once = draw_all(mass, np.array([uniform(s, at) for s in (0, 17) for at in range(40)]))
        assert chosen == singly == at_once.tolist()


def test_the_numbers_are_uniform_along_positions_and_across_seeds() -> None:
    along, across = np.split(numbers(), 2)
    for found in (along, across):
        statistic, bound = chi_square(np.histogram(found, 100, (0, 1))[0], np.full(100, 0.01))
        assert statistic < bound
        pairs = np.histogram2d(found[::2], found[1::2], 10, ((0, 1), (0, 1)))[0].ravel()
        statistic, bound = chi_square(pairs, np.full(100, 0.01))
        assert statistic < bound, "neighbours are not independent"


@given(
    st.lists(st.integers(-400, 400), min_size=2, max_size=40, unique=True),
    st.floats(0.05, 5),
    st.one_of(st.none(), st.integers(1, 50)),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.5, 2),
    st.data(),
)
def test_distribution_equals_the_definition(
    raw: list[int],
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
    penalty: float,
    data: st.DataObject,
) -> None:
    logits = np.array(raw, dtype=np.float32) / 37
    seen = tuple(data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=5)))
    penalized = [
        x * (penalty if x < 0 else 1 / penalty) if i in seen else x for i, x in enumerate(logits)
    ]
    assume(np.diff(sorted(penalized)).min() > 1e-4)  # a near tie may be ranked either way
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    wanted = expected(logits.astype(np.float64), params, seen)
    for nudge in (0.999, 1.001):  # at a threshold two roundings may differ and both be right
        near = replace(params, top_p=min(1.0, top_p * nudge), min_p=min(1.0, min_p * nudge))
        support = expected(logits.astype(np.float64), near, seen) > 0
        assume(((wanted > 0) == support).all())
    got = distribution(torch.tensor(logits), params, seen).numpy()
    assert ((got > 0) == (wanted > 0)).all()
    assert np.allclose(got, wanted, atol=1e-3)
    assert abs(got.sum() - 1) < 1e-9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(any), st.floats(0, 1))
def test_draw_inverts_the_cumulative_sum(weights: list[float], number: float) -> None:
    total = math.fsum(weights)
    token = draw(torch.tensor(weights, dtype=torch.float64), min(number, 1 - 2**-53))
    assert weights[token] > 0
    assert math.fsum(weights[:token]) <= number * total + 1e-9
    assert number * total <= math.fsum(weights[: token + 1]) + 1e-9


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    st.lists(FINITE | st.just(-math.inf), min_size=1, max_size=30),
    st.builds(
        SamplingParams,
        temperature=POSITIVE,
        top_k=st.none() | st.integers(1, 40),
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=st.floats(0, 1),
        repetition_penalty=POSITIVE,
    ),
    st.lists(st.integers(0, 29), max_size=4),
    st.floats(0, 1, exclude_max=True),
)
def test_extreme_logits_give_finite_probabilities_that_sum_to_one(
    raw: list[float], params: SamplingParams, seen: list[int], number: float
) -> None:
    assume(max(raw) > -math.inf)
    logits = torch.tensor(raw, dtype=torch.float32)
    before = [token for token in seen if token < len(raw)]
    mass = distribution(logits, params, before)
    assert mass.dtype == torch.float64 and bool(mass.isfinite().all())
    assert float(mass.min()) >= 0 and float(mass.sum()) == pytest.approx(1, abs=1e-9)
    assert not mass[logits.isneginf()].any(), "what is masked is never drawn"
    assert mass[draw(mass, number)] > 0
    greedy = choose(logits, replace(params, temperature=0.0), 0, 0, before)
    assert raw[greedy] > -math.inf


def test_draw_at_both_ends() -> None:
    mass = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    assert draw(mass, 0.0) == 1
    assert draw(mass, 1 - 2**-53) == 3


def test_uniform_depends_on_seed_and_position_only() -> None:
    grid = {(s, p): uniform(s, p) for s in (0, 1, 2**64 - 1) for p in range(50)}
    assert len(set(grid.values())) == len(grid)
    assert all(0 <= u < 1 for u in grid.values())
    assert {key: uniform(*key) for key in reversed(grid)} == grid


def test_extreme_temperatures_stay_finite() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float32)
    cold = distribution(logits, SamplingParams(temperature=1e-300))
    assert cold.argmax() == int(LOGITS.argmax()) and cold.sum() == 1
    hot = distribution(logits, SamplingParams(temperature=1e300))
    assert torch.allclose(hot, torch.full_like(hot, 1 / len(LOGITS)))


def test_greedy_ignores_filters_and_seed() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float32)
    params = SamplingParams(temperature=0, top_k=3, top_p=0.1, min_p=0.9)
    assert {choose(logits, params, seed, 5, ()) for seed in range(20)} == {int(LOGITS.argmax())}
