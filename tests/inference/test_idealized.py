"""The idealized runtime against grids whose F and g are known."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import InferenceInputError
from inference.idealized import IdealizedRuntime, hold_out

LENGTHS = (1, 16, 64, 256, 1024)
OUTPUTS = (1, 2, 4, 8, 16, 32)


@given(start=st.floats(0.001, 1), per_prompt=st.floats(1e-5, 1e-2), g=st.floats(1e-4, 1))
def test_an_exact_grid_is_recovered(start: float, per_prompt: float, g: float) -> None:
    grid = {(p, o): start + per_prompt * p + g * (o - 1) for p in LENGTHS for o in OUTPUTS}
    model = IdealizedRuntime.fit(grid)
    assert model.per_token == pytest.approx(g)
    assert model.r_squared == pytest.approx(1)
    for (p, o), seconds in grid.items():
        assert model.seconds(p, o) == pytest.approx(seconds)


def test_noise_is_averaged_out() -> None:
    chance = random.Random(0)
    grid = {
        (p, o): 0.1 + p * 1e-3 + 0.02 * (o - 1) + (chance.gauss(0, 0.005) if o > 1 else 0)
        for p in LENGTHS
        for o in OUTPUTS
    }
    model = IdealizedRuntime.fit(grid)
    assert model.per_token == pytest.approx(0.02, rel=0.05)
    assert 0.98 < model.r_squared < 1
    assert 0 < model.mean_squared_error < model.max_squared_error


def test_between_profiled_lengths_is_a_straight_line_and_beyond_them_a_share() -> None:
    model = IdealizedRuntime.fit({(10, 1): 1.0, (10, 2): 1.5, (20, 1): 3.0, (20, 3): 4.0})
    assert model.seconds(15, 1) == pytest.approx(2.0)
    assert model.seconds(40, 1) == pytest.approx(6.0)
    assert model.seconds(1, 1) == pytest.approx(1.0), "a short prompt takes a whole forward"
    assert model.seconds(10, 0) == model.seconds(10, 1) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 5), min_size=3, max_size=9), st.floats(0.001, 1))
def test_the_held_out_half_is_judged_by_its_own_measurements(firsts: list[float], g: float) -> None:
    lengths = [2**n for n in range(len(firsts))]
    grid = {
        (p, o): first + g * (o - 1)
        for p, first in zip(lengths, firsts, strict=True)
        for o in (1, 3)
    }
    held = hold_out(grid)
    assert sorted((*held.fitted, *held.predicted)) == lengths
    model = IdealizedRuntime.fit({at: s for at, s in grid.items() if at[0] in held.fitted})
    errors = [abs(model.seconds(*at) - s) / s for at, s in grid.items() if at[0] in held.predicted]
    assert held.max_error == pytest.approx(max(errors))
    assert held.median_error == pytest.approx(statistics.median(errors))
    assert held.r_squared <= 1
    foreseen = {at: model.seconds(*at) if at[0] in held.predicted else s for at, s in grid.items()}
    assert hold_out(foreseen).max_error == pytest.approx(0)


def test_too_few_lengths_to_hold_out() -> None:
    with pytest.raises(InferenceInputError, match=r"2 prompt lengths .* at least 3"):
        hold_out({(p, o): 1.0 * p * o for p in (1, 2) for o in (1, 2)})


@pytest.mark.parametrize(
    "grid", [{(4, 2): 1.0}, {(4, 1): 1.0}, {}, {(4, 1): 1.0, (8, 2): 2.0}], ids=str
)
def test_a_grid_that_says_too_little_is_refused(grid: dict[tuple[int, int], float]) -> None:
    with pytest.raises(InferenceInputError, match="measured"):
        IdealizedRuntime.fit(grid)


@pytest.mark.parametrize(("prompt", "output"), [(0, 1), (-1, 1), (1, -1)])
def test_impossible_lengths_are_refused(prompt: int, output: int) -> None:
    model = IdealizedRuntime.fit({(1, 1): 1.0, (1, 2): 2.0})
    with pytest.raises(InferenceInputError):
        model.seconds(prompt, output)
