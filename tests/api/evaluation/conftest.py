"""A home of its own for results and indexes, and a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.conftest import ragwright
from tests.inference.tiny import checkpoint

__all__ = ["ragwright"]


@pytest.fixture(scope="session")
def eval_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the session, so that an index is built once; models stay where they are."""
    from inference.models import models_home

    models = models_home()
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("home")
    (folder / "models").symlink_to(models, target_is_directory=True)
    return folder


@pytest.fixture(autouse=True)
def home(eval_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(eval_home))
    return eval_home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model"), context=8192, endless=True))
