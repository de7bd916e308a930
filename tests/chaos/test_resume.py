"""Runs that are killed with SIGKILL go on where they were: nothing lost, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "RAGWRIGHT_HOME": str(tmp_path / "home")}


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    file = tmp_path / "tally.yaml"
    file.write_text(WORKFLOW, encoding="utf-8")
    return file


def _resume(home: dict[str, str], *options: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "run", "--resume", "killed", "--json", *options],
        env=home,
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
    killed = subprocess.run(
        [sys.executable, "-c", SUICIDE, str(workflow), str(at)], env=home, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    status, result, errors = _resume(home)
    assert status == 0, errors
    assert result["outputs"] == EXPECTED
    effective = [s["task"] for s in result["steps"] if not s.get("superseded")]
    assert len(effective) == len(set(effective)) == 8
    assert len(result["steps"]) <= 8 + 4, "only the superstep that was cut off may run again"


def test_a_completed_run_gives_its_result_again(home: dict[str, str], workflow: Path) -> None:
    subprocess.run([sys.executable, "-c", SUICIDE, str(workflow), "0"], env=home, check=True)
    first, again = _resume(home), _resume(home)
    assert first == again and first[1]["outputs"] == EXPECTED
    folder = Path(home["RAGWRIGHT_HOME"]) / "runs" / "killed"
    assert not list(folder.glob("checkpoints*")), "a completed run keeps no checkpoints"


def test_a_changed_workflow_is_not_resumed(home: dict[str, str], workflow: Path) -> None:
    subprocess.run([sys.executable, "-c", SUICIDE, str(workflow), "4"], env=home, check=False)
    workflow.write_text(WORKFLOW.replace("x * 2", "x * 3"), encoding="utf-8")
    status, _, errors = _resume(home)
    assert status == 2 and "changed since run killed began" in errors


def test_a_journal_line_cut_in_half_is_dropped(home: dict[str, str], workflow: Path) -> None:
    subprocess.run([sys.executable, "-c", SUICIDE, str(workflow), "6"], env=home, check=False)
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
    started = tmp_path / "trace.jsonl"
    order = ["closed_book", "--question", "Why?", "--model", str(model), "--run-id", "killed"]
    more = ["--input", "max_tokens=90000", "--budget", "tokens=95000", "--trace", str(started)]
    process = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "run", *order, *more, "--json"],
        env=home,
        stdout=subprocess.PIPE,
        text=True,
    )
    while "step_started" not in (started.read_text() if started.exists() else ""):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    result = json.loads(out)
    assert process.returncode == 1
    assert (result["status"], result["error"]["code"]) == ("cancelled", "cancelled")
    assert 0 < result["usage"]["completion_tokens"] < 90_000
    assert result["steps"][-1]["usage"]["completion_tokens"] == result["usage"]["completion_tokens"]
