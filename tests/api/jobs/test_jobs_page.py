"""docs/jobs.md: its example runs, its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from api.jobs.job import TERMINAL, JobState
from api.settings import Settings
from tests.house.source import ROOT

PAGE = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")


def test_the_example_runs_and_prints_what_it_came_to(tmp_path: Path) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAGWRIGHT_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{'twice': 42}"
    assert "step_finished" in done.stdout


def test_the_diagram_has_every_state_and_no_way_out_of_the_end() -> None:
    ways = re.findall(r"^  (\S+) --> (\w+)", PAGE, re.MULTILINE)
    assert {state for way in ways for state in way} == {"[*]", *(s.value for s in JobState)}
    assert {start for start, _ in ways} & {s.value for s in TERMINAL} == {"failed"}


def test_the_table_of_settings_names_settings() -> None:
    named = re.findall(r"^\| `RAGWRIGHT_(\w+)`", PAGE, re.MULTILINE)
    assert named and {name.lower() for name in named} <= set(Settings.model_fields)
