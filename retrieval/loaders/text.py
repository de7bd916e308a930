"""Plain text, and the strict reading of UTF-8 that the other text formats share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retrieval.documents import Document
from retrieval.errors import RetrievalInputError


def read_utf8(file: Path) -> str:
    """Exact content of a UTF-8 file, line ends untouched; binary content is refused."""
    return decode_utf8(file.read_bytes(), str(file))


def decode_utf8(content: bytes, place: str) -> str:
    """Text of `content`; a NUL byte or an invalid sequence is refused with its position."""
    if (nul := content.find(b"\0")) >= 0:
        raise RetrievalInputError(
            f"{place}: binary content (a NUL byte at {nul}); convert it to UTF-8 text or remove it"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RetrievalInputError(
            f"{place}: not UTF-8 (byte {content[error.start]:#04x} at {error.start}); "
            "convert it, for example with: iconv -f LATIN1 -t UTF-8"
        ) from None


def load_text(file: Path, name: str) -> Iterator[Document]:
    """One document titled by the name of the file."""
    yield Document(id=name, title=file.stem, source=str(file), text=read_utf8(file))
