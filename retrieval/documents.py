"""Files and folders to documents: what is read, what is refused, and all faults at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval.errors import BadDocuments, RetrievalInputError


@dataclass(frozen=True, slots=True)
class Document:
    """One source text; passages point into `text` by character offsets.

    `text` is the exact content of a .txt or .md file, the `text` of a .jsonl row, and the
    extracted text of an .html or .pdf file. `metadata` holds JSON values.
    """

    id: str
    title: str
    source: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def load(path: str | Path) -> Iterator[Document]:
    """Stream the documents of a file, or of all supported files under a folder, by path order.

    Good documents are yielded as they are read; if any was bad, `BadDocuments` with all of
    them is raised at the end, so a consumer commits only after the iterator is exhausted.
    """
    from retrieval.loaders import read

    faults: list[str] = []
    seen: dict[str, str] = {}
    for file, name in files(path, faults):
        for item in read(file, name):
            if isinstance(item, RetrievalInputError):
                faults.append(str(item))
            elif item.id in seen:
                faults.append(
                    f"{item.source}: the document id {item.id!r} already stands in "
                    f"{seen[item.id]}; give every document its own id"
                )
            else:
                seen[item.id] = item.source
                yield item
    if faults:
        raise BadDocuments(faults)


def files(path: str | Path, faults: list[str]) -> list[tuple[Path, str]]:
    """Supported files with their names relative to the docs root (posix), sorted by name.

    Hidden files and files of other formats are left out; links that leave the root and names
    that are not UTF-8 are added to `faults`.
    """
    from retrieval.loaders import LOADERS, formats

    root = Path(path)
    if not root.exists():
        raise RetrievalInputError(f"{root}: no such file or folder; give the path of documents")
    if not root.is_dir():
        if root.suffix.lower() not in LOADERS:
            raise RetrievalInputError(
                f"{root}: the format {root.suffix or '(no extension)'!r} is not supported; "
                f"convert it to one of {formats()}"
            )
        return [(root, root.name)]
    found = sorted(_walk(root, faults), key=lambda pair: pair[1])
    if not found and not faults:
        raise RetrievalInputError(
            f"{root}: the folder holds no document; put files of these formats there: {formats()}"
        )
    return found


def _walk(root: Path, faults: list[str]) -> Iterator[tuple[Path, str]]:
    """All supported regular files below `root`; never follows a link to a folder."""
    from retrieval.loaders import LOADERS

    real = root.resolve()

    def unreadable(error: OSError) -> None:
        faults.append(f"{error.filename}: {error.strerror}; make the folder readable")

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted([*subfolders, *names]):
            file = Path(folder) / name
            if name.startswith("."):
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(real):
                faults.append(f"{file}: the link leaves {root}; copy its target into the folder")
            elif name not in subfolders and file.suffix.lower() in LOADERS:
                relative = file.relative_to(root).as_posix()
                if _is_utf8(relative):
                    yield file, relative
                else:
                    faults.append(f"{relative!r}: the file name is not UTF-8; rename the file")


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
