"""A library in a folder of its own; models stay where they are cached."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.library import Library
from api.library.entry import Entry
from api.library.upload import Given

FACTS = "Ada\twrote\tNotes\nNotes\tdescribe\tEngine\n"


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "library") as found:
        yield found


def given(name: str, content: str | bytes) -> Given:
    """An uploaded file."""
    return Given(name, io.BytesIO(content.encode() if isinstance(content, str) else content))


def make(
    library: Library, tenant: str = "a", name: str = "g", facts: str = FACTS, extend: bool = False
) -> Entry:
    """A graph of these facts, or these facts added to one."""
    files = [given("facts.tsv", facts)]
    return library.graphs.files(tenant, name, files, extend=extend, wait=60)
