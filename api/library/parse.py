"""Reads uploaded files in a process of its own: `python -m api.library.parse KIND FOLDER LIMITS`.

Formats like PDF are read by native code, and a small file can hold a large text. Here neither can
harm the service: processor time, memory and output are bounded by the system. The last line of
standard output is one JSON object: `faults`, `items`, `characters`.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from api.library.upload import ORDER, PARSED

MAX_FAULTS = 100


class TooMuch(Exception):
    """A limit of the upload; the message is the fault."""


def main(kind: str, folder: Path, limits: Mapping[str, int]) -> dict[str, Any]:
    """Write the rows of all files to parsed.jsonl; what was wrong, and how much it was."""
    bound(limits)
    faults: list[str] = []
    items = characters = 0
    read = {"index": documents, "graph": facts}[kind]
    with (folder / PARSED).open("wb") as out:
        try:
            for row in read(folder, faults, limits):
                line = json.dumps(row, ensure_ascii=False)
                items, characters = items + 1, characters + len(line)
                if characters > limits["characters"]:
                    raise TooMuch(
                        f"the files hold more than {limits['characters']} characters; send less "
                        "at a time"
                    )
                if items > limits["documents"]:
                    raise TooMuch(f"more than {limits['documents']} documents; send fewer")
                out.write(line.encode("utf-8") + b"\n")
                if len(faults) >= MAX_FAULTS:
                    break
        except TooMuch as error:
            faults.append(str(error))
    return {"faults": faults[:MAX_FAULTS], "items": items, "characters": characters}


def bound(limits: Mapping[str, int]) -> None:
    """Let the system end this process where it takes too much."""
    resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"], limits["seconds"] + 5))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    most = limits["characters"] * 4 + 2**20
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def documents(folder: Path, faults: list[str], limits: Mapping[str, int]) -> Iterator[Any]:
    """Rows of documents: id, title, source, text, metadata; the name of a file is its id."""
    from retrieval.errors import RetrievalInputError
    from retrieval.loaders import read

    seen: dict[str, str] = {}
    for file, name in _files(folder):
        if file.suffix == ".pdf" and (pages := _pages(file)) > limits["pages"]:
            faults.append(f"{name}: {pages} pages, {limits['pages']} are allowed; split the file")
            continue
        for item in read(file, name):
            if isinstance(item, RetrievalInputError):
                faults.append(str(item).replace(str(file), name))
                continue
            if item.id in seen:
                faults.append(
                    f"{name}: the document id {item.id!r} already stands in {seen[item.id]}; "
                    "give every document its own id"
                )
                continue
            seen[item.id] = name
            title = name.rpartition("/")[2].rpartition(".")[0]
            shown = replace(
                item, source=name, title=title if item.title == file.stem else item.title
            )
            yield [shown.id, shown.title, shown.source, shown.text, dict(shown.metadata)]


def facts(folder: Path, faults: list[str], limits: Mapping[str, int]) -> Iterator[Any]:
    """Rows of facts (head, relation, tail, source, line) and of names (entity, name)."""
    from graphs.errors import BadTriples
    from graphs.loaders import Loaded, read

    found = False
    for file, name in _files(folder):
        loaded = Loaded()
        try:
            read(file, name, loaded)
        except BadTriples as error:
            faults += error.faults
            continue
        found = found or bool(loaded.facts)
        for fact in loaded.facts:
            yield [*fact.key, fact.source, fact.line]
        for entity, names in loaded.names.items():
            yield from ([entity, one] for one in names)
    if not found and not faults:
        faults.append("the files hold names of entities but no fact; give at least one fact")


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    for target, name in json.loads((folder / ORDER).read_bytes()):
        yield folder / target, name


def _pages(file: Path) -> int:
    """Pages of a PDF, 0 for one that cannot be opened, which its loader then says."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError:
        return 0
    with pdf:
        return len(pdf)


if __name__ == "__main__":
    report = main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
    sys.stdout.write(json.dumps(report))
