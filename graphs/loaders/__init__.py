"""One loader per format: a file to facts and names of entities, or to everything wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from graphs.errors import BadTriples, GraphInputError
from graphs.facts import Fact
from graphs.loaders.graphml import load_graphml
from graphs.loaders.rdf import load_ntriples, load_turtle
from graphs.loaders.reading import Name
from graphs.loaders.tsv import load_tsv
from inference.suggest import nearest

Loader = Callable[[Path, str], Iterator[Fact | Name | GraphInputError]]
"""(file, its name in messages and provenance) -> facts, names and faults, in file order."""

LOADERS: dict[str, Loader] = {
    ".tsv": load_tsv,
    ".ttl": load_turtle,
    ".nt": load_ntriples,
    ".graphml": load_graphml,
}

MAX_BYTES = 2**30
MAX_FAULTS = 100
"""Faults collected before reading stops; a file of another kind would give one a line."""


@dataclass
class Loaded:
    """What files hold: facts in reading order, and the names that entities go by."""

    facts: list[Fact] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)

    def call(self, name: Name) -> None:
        """Add a name of an entity behind those it has."""
        known = self.names.setdefault(name.entity, [])
        if name.name not in known:
            known.append(name.name)


def load(path: str | Path) -> Loaded:
    """Facts and names of a file, or of all graph files under a folder, by path order.

    Raises BadTriples with every fault at `file:line`.
    """
    root = Path(path)
    whole, faults = Loaded(), list[str]()
    for file in files(root):
        try:
            read(file, str(file), whole)
        except BadTriples as error:
            faults += error.faults
    if faults:
        raise BadTriples(faults)
    return whole


def read(file: Path, shown: str, into: Loaded) -> None:
    """Read one file into `into`; `shown` stands for it in messages and provenance.

    Raises BadTriples, and then `into` may hold a part of the file.
    """
    faults: list[str] = []
    try:
        if not file.is_file():
            raise GraphInputError(f"{shown}: not a regular file; replace it by a plain copy")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise GraphInputError(f"{shown}: {size} bytes, {MAX_BYTES} are allowed; split the file")
        for item in LOADERS[file.suffix.lower()](file, shown):
            if isinstance(item, Fact):
                into.facts.append(item)
            elif isinstance(item, Name):
                into.call(item)
            else:
                faults.append(str(item))
            if len(faults) >= MAX_FAULTS:
                break
    except GraphInputError as error:
        faults.append(str(error))
    except OSError as error:
        faults.append(f"{shown}: {error.strerror or error}; make the file readable or remove it")
    if faults:
        raise BadTriples(faults)


def files(root: Path) -> list[Path]:
    """The file itself, or the graph files below a folder, sorted; links are not followed."""
    if not root.exists():
        raise GraphInputError(f"{root}: no such file or folder; give the path of a graph")
    if not root.is_dir():
        check_format(root.name, str(root))
        return [root]
    found = [
        Path(folder) / name
        for folder, _, names in os.walk(root)
        for name in names
        if Path(name).suffix.lower() in LOADERS and not (Path(folder) / name).is_symlink()
    ]
    if not found:
        raise GraphInputError(
            f"{root}: the folder holds no graph; put files of these formats there: {formats()}"
        )
    return sorted(found)


def check_format(name: str, shown: str) -> None:
    """Raise GraphInputError unless the name ends as a graph file does."""
    suffix = Path(name).suffix.lower()
    if suffix not in LOADERS:
        raise GraphInputError(
            f"{shown}: the format {suffix or '(no extension)'!r} is not supported; "
            f"{nearest(suffix, LOADERS)}"
        )


def formats() -> str:
    """The supported extensions, for messages."""
    return " ".join(LOADERS)
