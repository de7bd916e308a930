"""The example of docs/retrieval.md runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "retrieval.md"


def test_the_example_runs(tmp_path: Path) -> None:
    example = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=PAGE.parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert example.count("assert") == 4
