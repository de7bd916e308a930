"""The example of docs/kv.md runs, here on a tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.house.source import ROOT
from tests.inference.tiny import checkpoint

PAGE = (ROOT / "docs" / "kv.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    model = str(checkpoint(tmp_path / "model", endless=True))
    assert code.count('"default"') == 1
    run = subprocess.run(
        [sys.executable, "-c", code.replace('"default"', repr(model))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    imported, reused, past = run.stdout.splitlines()
    tokens = int(imported.partition(" ")[0])
    assert tokens > 0 and tokens % 16 == 0 and int(reused) == tokens
    read, entries = past.split()
    assert int(read) >= tokens and float(entries) == 10


def test_every_policy_stands_on_the_page() -> None:
    from inference.kv import KV_POLICIES

    for name, row in KV_POLICIES.items():
        (line,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
        assert line.endswith(f"| {'yes' if row.lossless else 'no'} |")
        for option, field in row.model_fields.items():
            assert f"`{option}` {field.default}" in line
