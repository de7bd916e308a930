"""The benchmark of Auto-RAG: its rows on a tiny model over the real synthetic questions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inference.errors import UnknownName
from tests.bench import auto_rag
from tests.bench.auto_rag import Asked, Bench, answered, reused
from tests.bench.figures import Figure
from tests.inference.tiny import checkpoint

SHORT: dict[str, Any] = {"max_rounds": 2, "max_parametric_rounds": 1, "turn_tokens": 6}
SHORT |= {"parametric_turn_tokens": 6, "recall_tokens": 4, "closing_tokens": 4}
RUN = Asked("a", True, 10, 3, 4, 2.0)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    model = str(checkpoint(tmp_path_factory.mktemp("model"), context=4096))
    return Bench(1, model=model, inputs=SHORT, at_once=(2,))


def named(figures: list[Figure]) -> dict[str, Figure]:
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name: figure for figure in figures}


def test_reuse_computes_less_and_changes_no_outcome(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    found = named(bench.run(["reuse_float32"]))
    prefilled = found["reuse_float32 prefilled"]
    assert prefilled.value is not None and prefilled.peer_value is not None
    assert prefilled.ratio is not None and prefilled.ratio > 1
    parts = [
        found[f"reuse_float32 reused_by_{part}"].value for part in ("first_turn", "later_turns")
    ]
    assert all(parts)
    for kind in ("same_outcomes", "completed"):
        figure = found[f"reuse_float32 {kind}"]
        assert (figure.value, figure.n) == (3, 3)
    assert found["reuse_float32 seconds"].ratio is not None
    assert "reuse_float32: 3 of 3 questions" in capsys.readouterr().err


def test_questions_at_once_are_held_against_one_at_a_time(bench: Bench) -> None:
    found = named(bench.run(["at_once"]))
    both = found["at_once_2"]
    assert both.peer == auto_rag.ONE and both.peer_value == found["at_once_1"].value
    assert both.ratio is not None and both.ratio > 0
    assert (found["at_once_2 same_outcomes"].n, found["at_once_2 completed"].value) == (2, 2)


def test_rounds_mix_the_lengths_and_repeat_no_question(bench: Bench) -> None:
    rounds, other = bench.questions(4, 6)
    asked = [question for one in rounds for question in one]
    assert [len(one) for one in rounds] == [6] * 4
    assert len({*asked, other}) == 25


def test_failed_runs_are_counted_and_cost_nothing() -> None:
    failed = replace(RUN, outcome="b", completed=False, prefilled=0)
    found = named(reused("r", [(RUN, replace(RUN, prefilled=30)), (failed, RUN)]))
    assert (found["r prefilled"].ratio, found["r prefilled"].n) == (3.0, 1)
    assert (found["r same_outcomes"].value, found["r completed"].value) == (1, 1)
    assert found["r completed"].n == 2
    none = named(reused("r", [(failed, failed)]))
    assert set(none) == {"r same_outcomes", "r completed"} and none["r completed"].value == 0


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_are_asked_at_once_than_were_to_be(count: int) -> None:
    now, most = 0, 0

    async def ask(question: str, tenant: str) -> Asked:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return replace(RUN, outcome=f"{question} {tenant}")

    found = asyncio.run(answered(ask, ["a", "b", "c", "d"], count, "t"))
    assert [one.outcome for one in found] == ["a t", "b t", "c t", "d t"]
    assert most == count


def test_an_unknown_row_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'at_once'"):
        auto_rag.run(only=["at_onc"])
