"""Documents and facts that come as values: checked, and put as the reader of files puts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.library.errors import BadUpload
from graphs.errors import GraphInputError
from graphs.facts import tidy


def document_rows(documents: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of documents with `id`, `text`, and an optional `title` and `metadata`.

    Raises BadUpload with every fault, each at `documents[N]` (from 0).
    """
    faults: list[str] = []
    rows: list[list[Any]] = []
    seen: set[str] = set()
    for number, document in enumerate(documents):
        identifier, text = str(document["id"]), document["text"]
        title = document.get("title") or ""
        place = f"documents[{number}]"
        if not identifier.strip() or not identifier.isprintable():
            faults.append(f"{place}: the id {identifier[:80]!a} must be printable; give it a name")
        elif identifier in seen:
            faults.append(f"{place}: the id {identifier[:80]!r} stands twice; give each its own")
        elif not text.strip():
            faults.append(f"{place}: holds no text; leave it out")
        elif "\0" in text or "\0" in title:
            faults.append(f"{place}: holds a NUL character; remove it")
        seen.add(identifier)
        rows.append([identifier, title, identifier, text, dict(document.get("metadata") or {})])
    if faults:
        raise BadUpload(faults)
    return rows


def fact_rows(triples: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of facts with `head`, `relation`, `tail` and an optional `source`.

    Raises BadUpload with every fault, each at `triples[N]` (from 0).
    """
    faults: list[str] = []
    rows: list[list[Any]] = []
    for number, triple in enumerate(triples):
        place = f"triples[{number}]"
        try:
            names = [tidy(triple[part], part, place) for part in ("head", "relation", "tail")]
            source = triple.get("source") or ""
            rows.append([*names, tidy(source, "source", place) if source else "", None])
        except GraphInputError as fault:
            faults.append(str(fault))
    if faults:
        raise BadUpload(faults)
    return rows
