"""The examples of docs/workflows.md: valid, and the one that needs no model runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from workflows.loading import load_workflow
from workflows.operators import FUNCTIONS

TEXT = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=[text.split("\n")[0] for text in EXAMPLES])
def test_an_example_is_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_text(text, encoding="utf-8")
    load_workflow(tmp_path / "example.yaml")


def test_the_example_without_a_model_runs(run: Any) -> None:
    [text] = [text for text in EXAMPLES if text.startswith("name: shout")]
    result = run(text, {"words": ["a", "b"]})
    assert result.outputs == {"text": "A! B!", "rounds": 2}


def test_every_function_is_documented() -> None:
    [line] = [line for line in TEXT.splitlines() if line.startswith("- `len min")]
    assert line.split("`")[1].split() == list(FUNCTIONS)
