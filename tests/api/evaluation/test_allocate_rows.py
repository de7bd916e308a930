"""`ragwright allocate rows`: evaluations become what the allocation model is fitted to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agents.allocation_rows import PARTS, cells, read_rows, traits
from api.evaluation.allocating import parts
from tests.api.conftest import Ragwright

GRID = [
    *("drag:k=0,demonstrations=0,max_tokens=2", "drag:k=1,demonstrations=0,max_tokens=2"),
    *("drag:k=0,demonstrations=1,max_tokens=2", "naive_rag:max_tokens=2"),
    "iter_drag:k=1,demonstrations=0,iterations=1,max_tokens=32",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated") / "hops"


@pytest.fixture
def evaluated(ragwright: Ragwright, tiny: str, folder: Path) -> Path:
    if not folder.exists():
        asked = [word for name in GRID for word in ("--workflow", name)]
        suite = ("synthetic-hops:questions=3", "--model", tiny, "--out", folder, "--json")
        status, _, errors = ragwright("eval", *suite, *asked)
        assert status == 0, errors
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_rows_hold_what_was_measured(ragwright: Ragwright, evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    status, told, errors = ragwright("allocate", "rows", evaluated, "--out", out, "--json")
    assert status == 0, errors
    datasets = [f"synthetic-hops, {hops} hops" for hops in (1, 2, 3)]
    assert json.loads(told) == {
        "rows": str(out),
        "count": 9 * 4 * 2,  # questions, configurations, metrics; naive_rag is none
        "datasets": datasets,
        "left_out": [],
    }
    assert Counter(row["part"] for row in lines(out)) == dict.fromkeys(PARTS, 24)
    lengths = {
        (row["question"], row["workflow"]): row["usage"]["prompt_tokens"]
        for row in lines(evaluated / "rows.jsonl")
    }
    found = cells(read_rows(out))
    for dataset in datasets:
        assert traits(found, dataset, "drag", "em") == (0.0, 0.0), "a random model is never right"
    longest = max(
        length for (_, workflow), length in lengths.items() if workflow.startswith("iter_drag")
    )
    measured = [
        cell.length
        for (_, strategy, _, _), here in found.items()
        for cell in here.values()
        if strategy == "iter_drag"
    ]
    assert max(measured) == longest
    assert {theta for key, here in found.items() if key[1] == "drag" for theta in here} == {
        (0, 0, 1),
        (1, 0, 1),
        (0, 1, 1),
    }


def test_what_is_incomplete_or_none_is_refused(
    ragwright: Ragwright, evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    short = tmp_path / "short"
    short.mkdir()
    (short / "manifest.json").write_bytes((evaluated / "manifest.json").read_bytes())
    whole = (evaluated / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (short / "rows.jsonl").write_text("".join(whole[:-1]), encoding="utf-8")
    for folders, says in (
        ((tmp_path / "none",), "give the manifest.json of an evaluation"),
        ((evaluated, evaluated), "drag with k=0, m=0, n=1 on synthetic-hops, 1 hops"),
        ((short,), "1 runs are missing"),
    ):
        status, _, errors = ragwright("allocate", "rows", *folders, "--out", out)
        assert status == 2 and says in errors, errors
        assert not out.exists()
    failed = [json.loads(line) for line in whole]
    for row in failed:
        if row["workflow"] == GRID[1]:
            row["error"] = {"code": "too_long", "message": "the prompt does not fit"}
    (short / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in failed))
    status, told, errors = ragwright("allocate", "rows", short, "--out", out)
    assert status == 0, errors
    assert told.count("left out: drag k=1, m=0, n=1 on synthetic-hops") == 3
    assert all(row["k"] != 1 for row in lines(out) if row["strategy"] == "drag")


def test_parts_are_even_and_settled_by_the_ids() -> None:
    names = [f"q{number}" for number in range(31)]
    found = parts(names)
    assert found == parts(reversed(names)) and set(found) == set(names)
    assert sorted(Counter(found.values()).values()) == [10, 10, 11]
