"""A library in a folder of its own; models stay where they are cached."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.library import Library
from api.library.upload import Given


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "library") as found:
        yield found


def given(name: str, content: str | bytes) -> Given:
    """An uploaded file."""
    return Given(name, io.BytesIO(content.encode() if isinstance(content, str) else content))
