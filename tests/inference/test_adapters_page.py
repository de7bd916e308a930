"""The examples of docs/adapters.md run, here on a tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source import ROOT
from tests.inference.tiny import checkpoint

PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=["engine", "train", "online"])
def test_the_example_runs(code: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    assert code.count('"default"') == 1
    run = subprocess.run(
        [sys.executable, "-c", code.replace('"default"', repr(str(model)))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    if "train_lora" in code:
        before, after = map(float, re.findall(r"\d+\.\d+", run.stdout))
        assert after < before
        assert {path.name for path in (tmp_path / "lamp").iterdir()} == {
            *("adapter_config.json", "adapter_model.safetensors", "card.json")
        }
    assert "Warning" not in run.stderr
