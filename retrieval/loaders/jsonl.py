"""JSON lines: one document a row with `id`, `text`, an optional `title`, and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from retrieval.documents import Document
from retrieval.errors import RetrievalInputError
from retrieval.loaders.text import decode_utf8

RESERVED = frozenset({"id", "title", "text"})


def load_jsonl(file: Path, name: str) -> Iterator[Document | RetrievalInputError]:
    """One document a row, its other keys as metadata; every bad row is a fault of its own."""
    rows = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            rows += 1
            try:
                yield _row(line, str(file), f"{file}:{number}")
            except RetrievalInputError as fault:
                yield fault
    if not rows:
        yield RetrievalInputError(f"{file}: holds no row; remove the file or put rows into it")


def _row(line: bytes, source: str, place: str) -> Document:
    text = decode_utf8(line, place)
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
        text.encode("utf-8")
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RetrievalInputError(
            f"{place}: half a surrogate pair in a string; write the whole character"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RetrievalInputError(
            f"{place}: not a JSON row ({error}); write one JSON object a line"
        ) from None
    if not isinstance(row, dict):
        raise RetrievalInputError(
            f"{place}: the row is a {type(row).__name__}; write an object with id, title, text"
        )
    return Document(
        id=_identifier(row, place),
        title=_string(row, "title", place, default=""),
        source=source,
        text=_string(row, "text", place),
        metadata={key: value for key, value in row.items() if key not in RESERVED},
    )


def _identifier(row: dict[str, Any], place: str) -> str:
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise RetrievalInputError(f"{place}: id={value!r} must be a non-empty string or an integer")
    return value


def _string(row: dict[str, Any], key: str, place: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise RetrievalInputError(f"{place}: {key}={value!r} must be a string with text in it")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
