"""Runs that are killed with SIGKILL go on where they were: nothing lost, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.inference.tiny import checkpoint

WORKFLOW = """
name: tally
inputs: {to: {type: integer, default: 4}}
state: {n: 0, seen: []}
nodes:
  add: {use: set, with: {values: {n: "${state.n + 1}", seen: "${state.seen + [state.n]}"}}}
  each:
    {use: set, with: {values: {double: "${x * 2}"}}, over: "${state.seen}", item: x, into: doubles}
edges:
  - {from: start, to: add}
  - {from: add, when: "state.n < inputs.to", to: add}
  - {from: add, to: each}
  - {from: each, to: end}
outputs: {n: "${state.n}", seen: "${state.seen}", doubles: "${pluck(state.doubles, 'double')}"}
"""
EXPECTED = {"n": 4, "seen": [0, 1, 2, 3], "doubles": [0, 2, 4, 6]}

# Runs the workflow and kills its own process at the event of the given number.
SUICIDE = """
import asyncio, os, signal, sys
from workflows.runs import RunOrder, start_run

count = 0

def kill(event):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(start_run(RunOrder(sys.argv[1], run_id="killed"), sinks=[kill]))
"""

# Generates without end and presses Ctrl-C, as it were, at the fifth piece of text.
INTERRUPT = """
import asyncio, json, os, signal, sys
from workflows.runs import RunOrder, start_run

pieces = 0

def interrupt(event):
    global pieces
    pieces += event.type == "text_delta"
    if event.type == "text_delta" and pieces == 5:
        os.kill(os.getpid(), signal.SIGINT)

order = RunOrder(
    "closed_book",
    {"question": "Why?", "max_tokens": 90_000},
    model=sys.argv[1],
    budget={"tokens": 95_000},
)
print(json.dumps(asyncio.run(start_run(order, [interrupt], stream_text=True)).to_dict()))
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "RAGWRIGHT_HOME": str(tmp_path / "home")}


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    file = tmp_path / "tally.yaml"
    file.write_text(WORKFLOW, encoding="utf-8")
    return file


def _killed(home: dict[str, str], workflow: Path, at: int) -> int:
    """Run the workflow until event `at` kills it (0 means never); the exit status."""
    command = [sys.executable, "-c", SUICIDE, os.path.relpath(workflow), str(at)]
    return subprocess.run(command, env=home, check=False).returncode


def _resume(home: dict[str, str], *options: str) -> tuple[int, dict[str, Any], str]:
    """From another folder than the run was started in."""
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "run", "--resume", "killed", "--json", *options],
        env={**home, "PYTHONPATH": str(Path.cwd())},
        cwd=Path(home["RAGWRIGHT_HOME"]).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


# Events: run_started, then two per step; 4 adds and 4 map elements.
@pytest.mark.parametrize("at", [1, 2, 5, 6, 9, 13])
def test_a_killed_run_goes_on_at_its_last_finished_step(
    home: dict[str, str], workflow: Path, at: int
) -> None:
    assert _killed(home, workflow, at) == -signal.SIGKILL
    status, result, errors = _resume(home)
    assert status == 0, errors
    assert result["outputs"] == EXPECTED
    effective = [s["task"] for s in result["steps"] if not s.get("superseded")]
    assert len(effective) == len(set(effective)) == 8
    assert len(result["steps"]) <= 8 + 4, "only the superstep that was cut off may run again"


def test_a_completed_run_gives_its_result_again(home: dict[str, str], workflow: Path) -> None:
    _killed(home, workflow, 0)
    first, again = _resume(home), _resume(home)
    assert first == again and first[1]["outputs"] == EXPECTED
    folder = Path(home["RAGWRIGHT_HOME"]) / "runs" / "killed"
    assert not list(folder.glob("checkpoints*")), "a completed run keeps no checkpoints"


def test_a_changed_workflow_is_not_resumed(home: dict[str, str], workflow: Path) -> None:
    _killed(home, workflow, 4)
    workflow.write_text(WORKFLOW.replace("x * 2", "x * 3"), encoding="utf-8")
    status, _, errors = _resume(home)
    assert status == 2 and "changed since run killed began" in errors


def test_a_journal_line_cut_in_half_is_dropped(home: dict[str, str], workflow: Path) -> None:
    _killed(home, workflow, 6)
    journal = Path(home["RAGWRIGHT_HOME"]) / "runs" / "killed" / "journal.jsonl"
    with journal.open("a", encoding="utf-8") as lines:
        lines.write('{"type": "step_fin')
    status, result, errors = _resume(home)
    assert status == 0, errors
    assert result["outputs"] == EXPECTED


@pytest.mark.parametrize("run_id", ["nope", "../up", "", "a/b"])
def test_an_unknown_or_unsafe_run_id_is_refused(home: dict[str, str], run_id: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "run", "--resume", run_id],
        env=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_an_interrupt_from_the_keyboard_ends_a_run_as_cancelled(
    home: dict[str, str], tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "model", context=100_000, endless=True)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, str(model)], env=home, capture_output=True, check=True
    )
    result = json.loads(done.stdout)
    assert (result["status"], result["error"]["code"]) == ("cancelled", "cancelled")
    assert 5 <= result["usage"]["completion_tokens"] < 90_000, "what was spent is charged"
    assert result["steps"][-1]["usage"]["completion_tokens"] == result["usage"]["completion_tokens"]
