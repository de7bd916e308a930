"""The example of docs/openai.md, run as it stands against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference.models import models_home
from tests.house.source import ROOT
from tests.load import serve


@pytest.mark.default_model
def test_the_example_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "openai.md").read_text(encoding="utf-8")
    (example,) = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    (tmp_path / "models").symlink_to(models_home(), target_is_directory=True)
    with serve(tmp_path) as server:
        run = subprocess.run(
            [sys.executable, "-c", example],
            env={**os.environ, "RAGWRIGHT_URL": server.url, "RAGWRIGHT_KEY": server.key},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert any(line in ('"red"', '"green"', '"blue"') for line in lines)
    assert lines[-1].endswith(" completed")
