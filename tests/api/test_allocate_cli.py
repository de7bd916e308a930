"""`ragwright allocate` and `ragwright demonstrations` from the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agents.drag import demonstrations
from tests.agents.test_allocation import world
from tests.api.conftest import Ragwright
from tests.inference.tiny import checkpoint


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = []
    for row in world(0.01):
        value = asdict(row)
        value["k"], value["m"], value["n"] = value.pop("theta")
        lines.append(json.dumps(value))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def shown(ragwright: Ragwright, *arguments: object) -> dict[str, Any]:
    status, out, errors = ragwright(*arguments, "--json")
    assert status == 0, errors
    value: dict[str, Any] = json.loads(out)
    return value


def test_fit_choose_and_check(ragwright: Ragwright, rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    told = shown(ragwright, "allocate", "fit", rows, "--out", model)
    assert told["regression"]["rank"] == 6 and model.is_file()
    ask = ("allocate", "choose", model, rows, "--dataset", "one", "--budget", 1024)
    choice = shown(ragwright, *ask)
    assert choice["length"] <= 1024 and choice["strategy"] in ("drag", "iter_drag")
    status, out, _ = ragwright(*ask, "--strategy", "drag")
    assert status == 0 and out.startswith("drag with k=") and "ragwright run drag --input k=" in out
    checked = shown(ragwright, "allocate", "check", rows, "--budget", 512, "--budget", 10)
    assert len(checked["trials"]) == 6
    status, out, _ = ragwright("allocate", "check", rows, "--budget", 512, "--budget", 10)
    assert status == 0 and out.count("  regret ") == 3 and out.count("predicted to fit") == 3
    status, out, _ = ragwright("allocate", "fit", rows, "--out", model)
    assert status == 0 and "in-sample R2" in out and "none dropped" in out


def test_what_cannot_be_used_is_bad_input(ragwright: Ragwright, rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    ragwright("allocate", "fit", rows, "--out", model)
    choose = ("allocate", "choose", model, rows, "--budget")
    for arguments, says in (
        (("allocate", "fit", tmp_path / "none.jsonl", "--out", model), "cannot be read"),
        (("allocate", "fit", rows, "--out", model, "--metric", "f1"), "'f1'"),
        ((*choose, 5, "--dataset", "one"), "the shortest takes"),
        ((*choose, 500, "--dataset", "four"), "no dev rows of dataset 'four'"),
        (("allocate", "choose", rows, rows, "--budget", 5, "--dataset", "one"), "allocation model"),
    ):
        status, _, errors = ragwright(*arguments)
        assert status == 2 and says in errors and "Traceback" not in errors


def test_runs_become_demonstrations_if_they_are_right(ragwright: Ragwright, tmp_path: Path) -> None:
    """A random model is never right, so a question is asked whose answer is what it says."""
    model = checkpoint(tmp_path / "model", context=2048, endless=True, ascii_only=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mill.md").write_text("# Mill\n\nThe mill is old.\n", encoding="utf-8")
    questions, out = tmp_path / "train.jsonl", tmp_path / "pool.jsonl"
    asked = {"question": "How old is the mill?", "answer": "very"}
    common = ("--docs", tmp_path / "docs", "-k", 1, "--shown", 0, "--iterations", 1)
    arguments = ("demonstrations", questions, *common, "--model", model, "--out", out)

    questions.write_text(json.dumps(asked), encoding="utf-8")
    report = shown(ragwright, *arguments)
    assert (report["tried"], report["kept"], report["failed"]) == (1, 0, 0)
    (line,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert line["kept"] is False

    right = {**asked, "aliases": [line["answer"]]}
    again = tmp_path / "again.jsonl"
    questions.write_text(json.dumps(right), encoding="utf-8")
    assert shown(ragwright, *arguments)["kept"] == 0, "what was tried is not tried again"
    report = shown(ragwright, *arguments[:-1], again)
    assert (report["tried"], report["kept"]) == (1, 1)
    (line,) = map(json.loads, again.read_text(encoding="utf-8").splitlines())
    (read,) = demonstrations(1, 1, [line])
    assert read.question == asked["question"] and read.answer == line["answer"]
    assert [each["title"] for each in read.documents] == ["Mill"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"question": "x"}', '{"question": " ", "answer": "x"}']
)
def test_bad_training_questions_are_refused(
    ragwright: Ragwright, tmp_path: Path, text: str
) -> None:
    questions = tmp_path / "train.jsonl"
    questions.write_text(text, encoding="utf-8")
    status, _, errors = ragwright(
        "demonstrations", questions, "--docs", tmp_path, "--out", tmp_path / "pool"
    )
    assert status == 2 and "train.jsonl" in errors and "Traceback" not in errors
