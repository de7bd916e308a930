"""The computation allocation model on planted data: recovery, sigmoid, budgets, unseen tasks."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.allocation import (
    PAPER,
    Model,
    Regression,
    Sigmoid,
    Task,
    choose,
    design,
    fit,
    fit_sigmoid,
    regress,
    tasks,
)
from agents.allocation_check import leave_one_out
from agents.allocation_rows import (
    BASE,
    AllocationError,
    Cell,
    Lengths,
    Row,
    cells,
    fit_lengths,
    length_terms,
    read_row,
    read_rows,
    traits,
    z_scores,
)

A, B, C = (0.325, 0.101, 0.177), (-0.067, -0.008), -0.730
"""As reported for Gemini 1.5 Flash."""
THETAS = [(k, m, n) for k, m, n in product((0, 1, 2, 5, 10, 20), (0, 1, 2, 4, 8), (1, 2, 3))]
TASKS = {"one": (0.4, 0.1), "two": (0.05, 0.3), "three": (0.2, -0.1)}


def planted(b: tuple[float, float] = B) -> tuple[list[Any], list[Any], Any]:
    """theta, i, and the linear part by a loop of its own."""
    theta, i, linear = [], [], []
    for task in TASKS.values():
        for one in THETAS:
            logs = [np.log(value + 0.01) for value in one]
            weights = (A[0] + b[0] * task[0], A[1] + b[1] * task[1], A[2])
            theta.append(one)
            i.append(task)
            linear.append(sum(w * x for w, x in zip(weights, logs, strict=True)) + C)
    return theta, i, np.array(linear)


@pytest.mark.parametrize("shape", [Sigmoid(9.0, 0.7, 0.1, -5.0), "identity"])
def test_what_was_planted_is_recovered(shape: Any) -> None:
    theta, i, linear = planted()
    z = linear if isinstance(shape, str) else shape(linear)
    found = regress(theta, i, z, sigmoid=shape)
    assert np.allclose([*found.a, *found.b, found.c], [*A, *B, C], atol=1e-6)
    assert found.rank == 6 and found.clipped == 0 and found.r2 > 1 - 1e-9
    assert np.allclose(found.predict(theta, i), z)


def test_the_task_matters_where_it_differs() -> None:
    theta, i, linear = planted((-0.6, 0.5))
    rng = np.random.default_rng(0)
    half = rng.permutation(len(linear)) % 2 == 0
    noisy = linear + rng.normal(0, 0.2, len(linear))

    def held_out(by_task: bool) -> float:
        seen = [at for at in range(len(theta)) if half[at]]
        found = regress(
            [theta[at] for at in seen], [i[at] for at in seen], noisy[half],
            sigmoid="identity", by_task=by_task,
        )  # fmt: skip
        return float(np.mean((found.predict(theta, i) - linear)[~half] ** 2))

    assert held_out(True) < 0.5 * held_out(False)
    plain = regress(theta, i, noisy, by_task=False)
    assert plain.b == (0.0, 0.0) and plain.r2 < regress(theta, i, noisy).r2


def test_the_fitted_sigmoid_bends_where_the_truth_does() -> None:
    theta, i, linear = planted()
    z = z_scores(PAPER(2 * linear), "planted").tolist()
    bent, straight = regress(theta, i, z), regress(theta, i, z, sigmoid="identity")
    assert bent.mse < 0.5 * straight.mse
    order = np.argsort(bent.predict(theta, i), kind="stable")
    assert np.array_equal(order, np.argsort(bent.linear(theta, i), kind="stable"))


def test_a_planted_sigmoid_is_found() -> None:
    x = np.linspace(-4, 3, 200)
    found = fit_sigmoid(x, PAPER(x))
    assert np.abs(found(x) - PAPER(x)).max() < 1e-4
    assert np.allclose(
        [found.scale, found.slope, found.shift, found.floor], [3.30, 1.81, 0.46, -2.18], atol=1e-2
    )


@given(st.floats(-4, 3))
def test_the_inverse_undoes_the_sigmoid(x: float) -> None:
    assert PAPER.inverse(PAPER(np.array([x]))) == pytest.approx([x], abs=1e-6)
    z = float(PAPER(np.array([x]))[0])
    assert PAPER.inverse(np.array([z])) == pytest.approx(
        [-0.46 - np.log(3.30 / (z + 2.18) - 1) / 1.81], abs=1e-9
    )


def test_what_lies_beyond_the_ceiling_is_clipped_and_counted() -> None:
    assert PAPER.clip(np.array([-9.0, 0.0, 9.0])) == pytest.approx([-2.179, 0.0, 1.119])
    assert np.isfinite(PAPER.inverse(np.array([-9.0, 9.0]))).all()
    theta, i, linear = planted()
    z = PAPER(linear)
    z[[3, 40]] = (2.5, -3.0)
    assert regress(theta, i, z, sigmoid=PAPER).clipped == 2


def test_epsilon_is_inside_the_logarithm() -> None:
    assert design([(0, 3, 1)], [(0.5, 2.0)])[0] == pytest.approx(
        [np.log(0.01), np.log(3.01), np.log(1.01), 0.5 * np.log(0.01), 2 * np.log(3.01), 1]
    )


def test_drag_alone_does_not_determine_the_iterations_and_says_so() -> None:
    theta, i, linear = planted()
    once = [at for at, one in enumerate(theta) if one[2] == 1]
    found = regress([theta[at] for at in once], [i[at] for at in once], linear[once])
    assert found.rank == 5


# A world of datasets: scores from the planted model, lengths from prompts that are summed up here.


def length_of(strategy: str, theta: tuple[int, int, int], words: int) -> int:
    """Input tokens by walking through the calls."""
    k, m, n = theta
    demonstration = m * (k * words + 30)
    if strategy == "drag":
        return 40 + (m + 1) * (k * words + 20)
    total, block, lines = 0, k * words, 0
    for call in range(2 * n + 1):
        if call % 2:
            block += k * words
        total += 40 + 20 + demonstration + block + lines
        lines += 11
    return total


def world(noise: float = 0.0, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    regression = Regression(A, (-0.6, 0.5), C, None, 1, 0, 1, 6, 0)
    rows = []
    for dataset, (words, gains) in enumerate(zip((30, 45, 60), TASKS.items(), strict=True)):
        name, i = gains
        for strategy in ("drag", "iter_drag"):
            grid = [t for t in THETAS if strategy == "iter_drag" or t[2] == 1]
            mine = (i[0] + 0.05, i[1]) if strategy == "iter_drag" else i
            values = regression.linear(grid, [mine] * len(grid))
            for theta, value in zip(grid, values, strict=True):
                length = length_of(strategy, theta, words)
                for part in ("a", "b"):
                    score = 0.4 + 0.05 * dataset + 0.1 * float(value) + noise * float(rng.normal())
                    rows.append(Row(name, strategy, "em", part, theta, score, length, 100))
            for theta, score in zip(BASE, (0.1, 0.1 + mine[0], 0.1 + mine[1]), strict=True):
                length = length_of(strategy, theta, words)
                rows.append(Row(name, strategy, "em", "dev", theta, score, length, 100))
    return rows


def test_i_is_read_from_dev_rows_only() -> None:
    found = cells(world())
    assert traits(found, "one", "drag", "em") == pytest.approx(TASKS["one"])
    assert traits(found, "one", "iter_drag", "em") == pytest.approx((0.45, 0.1))
    without = {key: value for key, value in found.items() if key[3] != "dev"}
    with pytest.raises(AllocationError, match=r"no scored dev row of dataset 'one'.*k=0, m=0, n=1"):
        traits(without, "one", "drag", "em")


def test_rows_of_one_theta_are_averaged_and_their_longest_query_counts() -> None:
    def row(score: float | None, length: int, questions: int) -> Row:
        return Row("d", "drag", "em", "a", (1, 0, 1), score, length, questions)

    found = cells([row(0.5, 90, 1), row(0.2, 120, 2), row(None, 300, 4), row(1.0, 80, 1)])
    assert found["d", "drag", "em", "a"][1, 0, 1] == Cell(pytest.approx(0.475), 300, 8)


@pytest.mark.parametrize("strategy", ["drag", "iter_drag"])
def test_the_length_model_is_the_sum_over_the_calls(strategy: str) -> None:
    model = fit_lengths(cells(world()), "two", strategy)
    assert model.factor == pytest.approx(1)
    for theta in [(3, 3, 1), (50, 16, 1), *([(7, 3, 5)] if strategy == "iter_drag" else [])]:
        assert model(theta) == pytest.approx(length_of(strategy, theta, 45))
    assert len(length_terms(strategy, (1, 1, 1))) == len(model.coefficients)


def test_no_measured_length_is_predicted_shorter() -> None:
    rng = np.random.default_rng(1)
    rows = [
        Row("d", "drag", "em", "a", t, 0.0, int(length_of("drag", t, 30) * rng.uniform(1, 1.3)))
        for t in THETAS
        if t[2] == 1
    ]
    model = fit_lengths(cells(rows), "d", "drag")
    assert model.factor > 1
    assert all(model(row.theta) >= row.length - 1e-6 for row in rows)


def test_lengths_that_are_not_determined_are_refused() -> None:
    rows = [Row("d", "iter_drag", "em", "dev", theta, None, 100) for theta in BASE]
    with pytest.raises(AllocationError, match=r"3 configurations.*their 5 coefficients"):
        fit_lengths(cells(rows), "d", "iter_drag")


def test_the_budget_holds_for_the_longest_query() -> None:
    """One long query among a hundred short ones rules a theta out, though the mean would fit."""
    rows = world()
    model = fit(cells(rows), "em")
    given = tasks(cells(rows), "one", "em", ["drag"])
    budget = 1000
    before = choose(model, given, budget)
    assert before.length <= budget
    long = [
        Row("one", "drag", "em", "a", row.theta, None, row.length * 3, 1)
        for row in rows
        if (row.dataset, row.strategy, row.part) == ("one", "drag", "a")
    ]
    after = choose(model, tasks(cells([*rows, *long]), "one", "em", ["drag"]), budget)
    assert after.length <= budget and 3 * length_of("drag", after.theta, 30) <= budget
    assert after.theta != before.theta and 3 * length_of("drag", before.theta, 30) > budget


def test_the_choice_is_the_best_of_all_that_fit() -> None:
    found = cells(world())
    model = fit(found, "em")
    given = tasks(found, "two", "em", ["drag", "iter_drag"])
    for budget in (256, 700, 2048, 10_000):
        every = [
            (float(model.regression.linear([theta], [task.i])[0]), theta)
            for task in given
            for theta in model.thetas(task.strategy)
            if length_of(task.strategy, theta, 45) <= budget
        ]
        assert choose(model, given, budget).theta == max(every)[1]
    with pytest.raises(AllocationError, match="budget of 10 input tokens; the shortest takes 60"):
        choose(model, given, 10)


def test_ties_go_to_the_shorter_one() -> None:
    flat = Model("em", Regression((0, 0, 0), (0, 0), 0, None, 0, 0, 6, 6, 0), {}, ())
    task = Task("drag", (0, 0), Lengths("drag", (10.0, 5.0, 3.0), 1.0))
    assert choose(flat, [task], 99, {"drag": [(2, 1, 1), (0, 0, 1)]}).theta == (0, 0, 1)


def test_a_model_is_read_back_exactly() -> None:
    model = fit(cells(world(0.02)), "em")
    assert Model.from_json(model.to_json()) == model
    for text in ("", "[]", "{}", json.dumps({**json.loads(model.to_json()), "regression": {}})):
        with pytest.raises(AllocationError, match="no allocation model"):
            Model.from_json(text)


def test_a_dataset_that_was_not_seen_is_chosen_for_well() -> None:
    budgets = [256, 512, 1024, 2048, 4096]
    trials = leave_one_out(cells(world(0.01)), "em", budgets)
    assert [(t.dataset, t.budget) for t in trials] == [
        (name, budget) for name in sorted(TASKS) for budget in budgets
    ]
    chosen, baseline, oracle = [], [], []
    for trial in trials:
        assert trial.chosen is not None and trial.oracle is not None
        assert trial.baseline is not None and trial.ceiling is not None
        assert not trial.chosen.over_budget and trial.chosen.length <= trial.budget
        assert trial.regret == pytest.approx(trial.oracle.score - trial.chosen.score)
        assert trial.ceiling >= max(trial.oracle.score, trial.chosen.score)
        chosen.append(trial.chosen.score)
        baseline.append(trial.baseline.score)
        oracle.append(trial.oracle.score)
    assert np.mean(chosen) >= np.mean(baseline) - 0.005
    assert np.mean(oracle) - np.mean(chosen) < 0.03


def test_half_b_does_not_take_part_in_the_choice() -> None:
    rows = world(0.01)
    upside_down = [
        Row(r.dataset, r.strategy, r.metric, r.part, r.theta, 1 - (r.score or 0), r.length)
        if r.part == "b"
        else r
        for r in rows
    ]
    before = leave_one_out(cells(rows), "em", [1024])
    after = leave_one_out(cells(upside_down), "em", [1024])
    for one, other in zip(before, after, strict=True):
        assert one.chosen is not None and other.chosen is not None
        assert one.chosen.theta == other.chosen.theta and one.chosen.score != other.chosen.score
        assert one.oracle is not None and other.oracle is not None
        assert one.oracle.theta == other.oracle.theta


GOOD = {
    "dataset": "d", "strategy": "drag", "metric": "em", "part": "a",
    "k": 1, "m": 0, "n": 1, "score": 0.5, "length": 90,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strategy": "rag"}, "strategy 'rag' is none of drag, iter_drag"),
        ({"part": "test"}, "part 'test' is none of dev, a, b"),
        ({"k": -1}, "k must be an integer of at least 0"),
        ({"n": 2}, "DRAG has n=1"),
        ({"score": "high"}, "score must be a number or null"),
        ({"score": float("nan")}, "score must be a number or null"),
        ({"length": 1.5}, "length must be an integer"),
    ],
)
def test_a_bad_row_is_refused_at_its_line(change: dict[str, Any], says: str, tmp_path: Any) -> None:
    assert read_row(GOOD).theta == (1, 0, 1)
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps({**GOOD, **change})}\n", encoding="utf-8")
    with pytest.raises(AllocationError, match=f":3: {says}"):
        read_rows(file)


def test_scores_that_are_all_equal_are_refused() -> None:
    with pytest.raises(AllocationError, match="dataset 'd': the scores"):
        z_scores([0.5, 0.5], "dataset 'd'")
    assert z_scores([1, 2, 3], "d").mean() == pytest.approx(0)
