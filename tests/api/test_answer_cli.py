"""`ragwright run --answer`: what a run asks, and how it is answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.conftest import Ragwright


def test_the_command_tells_how_to_answer(
    tmp_path: Path,
    ragwright: Ragwright,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    source = (
        "name: w\nnodes:\n  n: {use: interrupt, with: {ask: Go on?, choices: [yes, no]}}\n"
        "edges: [{from: start, to: n}, {from: n, to: end}]\noutputs: {a: '${state.answer}'}\n"
    )
    file = tmp_path / "w.yaml"
    file.write_text(source, encoding="utf-8")
    status, out, _ = ragwright("run", file, "--run-id", "r")
    assert status == 1
    command = next(line for line in out.splitlines() if "answer with: " in line)
    assert "n asks: Go on?" in out and "one of: yes, no" in out
    assert "--resume r --answer " in command
    status, _, errors = ragwright("run", "--resume", "r", "--answer", "perhaps")
    assert status == 2 and "must be one of" in errors
    status, out, _ = ragwright("run", "--resume", "r", "--answer", "yes", "--json")
    assert status == 0 and json.loads(out)["outputs"] == {"a": "yes"}
    status, _, errors = ragwright("run", file, "--answer", "yes")
    assert status == 2 and "--resume" in errors
