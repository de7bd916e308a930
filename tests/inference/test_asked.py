"""Prompts that the model writes itself: kept across kills, and refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import inference.training.asked as module
from inference import InferenceInputError
from inference.errors import InferenceError
from inference.training.asked import FEWEST, KIND, asked
from tests.inference.tiny import checkpoint


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 8)


@pytest.mark.default_model
def test_the_default_model_asks_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    whole = asked("default", "float32", 9, 0, tmp_path / "whole.json")
    texts = [one.text for one in whole]
    assert len(set(texts)) == 9
    assert {one.kind for one in whole} == {KIND}
    assert all(len(text.split()) >= FEWEST and "<|" not in text for text in texts)
    stored = json.loads((tmp_path / "whole.json").read_text(encoding="utf-8"))
    stored["draws"] = stored["draws"][:8]
    (tmp_path / "torn.json").write_text(json.dumps(stored), encoding="utf-8")
    assert asked("default", "float32", 9, 0, tmp_path / "torn.json") == whole
    assert asked("default", "float32", 4, 0, tmp_path / "whole.json") == whole[:4]
    with pytest.raises(InferenceInputError, match="were drawn with"):
        asked("default", "float32", 9, 1, tmp_path / "whole.json")


def test_a_model_that_ends_no_question_is_told_of(tmp_path: Path) -> None:
    endless = str(checkpoint(tmp_path / "model", endless=True))
    with pytest.raises(InferenceError, match="asked 0 different questions in 16 draws"):
        asked(endless, "float32", 2, 0, tmp_path / "asked.json")


def test_no_template_no_questions(tmp_path: Path) -> None:
    plain = str(checkpoint(tmp_path / "model", template=None))
    with pytest.raises(InferenceInputError, match="no chat template"):
        asked(plain, "float32", 2, 0, tmp_path / "asked.json")
