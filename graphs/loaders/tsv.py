"""Triples as tab-separated lines: head, relation, tail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from graphs.errors import GraphInputError
from graphs.facts import Fact, tidy
from graphs.loaders.reading import read_text

COLUMNS = ("head", "relation", "tail")


def load_tsv(file: Path, shown: str) -> Iterator[Fact | GraphInputError]:
    """A fact a line; blank lines and a first line with the names of the columns are skipped."""
    rows = 0
    for number, line in enumerate(read_text(file, shown).split("\n"), start=1):
        cells = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and tuple(map(str.lower, cells)) == COLUMNS):
            continue
        rows += 1
        place = f"{shown}:{number}"
        if len(cells) != 3:
            yield GraphInputError(
                f"{place}: {len(cells)} columns; write head, relation and tail with a tab "
                "between them"
            )
            continue
        try:
            head, relation, tail = (
                tidy(cell, what, place) for cell, what in zip(cells, COLUMNS, strict=True)
            )
        except GraphInputError as fault:
            yield fault
            continue
        yield Fact(head, relation, tail, shown, number)
    if not rows:
        yield GraphInputError(f"{shown}: holds no triple; remove the file or put lines into it")
