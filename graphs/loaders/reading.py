"""What the loaders share: strict UTF-8, and names of entities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graphs.errors import GraphInputError
from retrieval.errors import RetrievalInputError
from retrieval.loaders.text import decode_utf8


@dataclass(frozen=True, slots=True)
class Name:
    """A name that an entity goes by, besides its identity."""

    entity: str
    name: str


def read_text(file: Path, shown: str) -> str:
    """Content of a UTF-8 file without its byte order mark; binary content is refused."""
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return decode_utf8(content, shown)
    except RetrievalInputError as error:
        place = content.find(b"\0")
        if place < 0:
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as wrong:
                place = wrong.start
        line = content.count(b"\n", 0, max(place, 0)) + 1
        raise GraphInputError(f"{shown}:{line}{str(error).removeprefix(shown)}") from None
