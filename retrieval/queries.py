"""Query files: one query a line, or JSONL rows of `id` and `query`."""

from __future__ import annotations

import json
from pathlib import Path

from retrieval.errors import RetrievalInputError
from retrieval.loaders.text import read_utf8


def read_queries(file: Path) -> list[tuple[str, str]]:
    """(id, query) of every line; a plain line's id is its line number, from 1.

    A file named .jsonl holds one object a line with `query` (or `question`) and an optional
    `id`. Blank lines are skipped. Raises `RetrievalInputError` naming file and line.
    """
    try:
        lines = read_utf8(file).splitlines()
    except OSError as error:
        raise RetrievalInputError(
            f"{file}: {error.strerror or error}; give the path of a query file"
        ) from None
    numbered = [(n, line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise RetrievalInputError(f"{file}: holds no query; write one a line")
    if file.suffix.lower() != ".jsonl":
        return [(str(number), line) for number, line in numbered]
    return [_row(line, f"{file}:{number}", str(number)) for number, line in numbered]


def _row(line: str, place: str, default_id: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RetrievalInputError(
            f"{place}: not a JSON row ({error}); write one JSON object a line"
        ) from None
    query = row.get("query", row.get("question")) if isinstance(row, dict) else None
    if not isinstance(query, str) or not query.strip():
        raise RetrievalInputError(
            f"{place}: query={query!r} must be a string with text in it; "
            'write rows like {"id": "1", "query": "..."}'
        )
    return str(row.get("id", default_id)), query
