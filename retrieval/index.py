"""Building, extending and opening an index folder.

An index folder holds `manifest.json` and one folder with the files that it names. A build
writes the files beside the index, moves them in, and then replaces the manifest: that one
rename is the moment at which the index changes, so an interruption at any point leaves the
old index usable.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from retrieval.build import Build, BuildReport, Progress
from retrieval.chunking import ChunkSettings
from retrieval.documents import Document
from retrieval.embedding import Embedder
from retrieval.manifest import read_manifest
from retrieval.store import Index, open_index

__all__ = [
    "BuildReport",
    "ChunkSettings",
    "Index",
    "Progress",
    "add_documents",
    "build_index",
    "open_index",
]


def build_index(
    docs: str | Path | Iterable[Document],
    out: str | Path,
    *,
    settings: ChunkSettings | None = None,
    progress: Progress | None = None,
    embedder: Embedder | None = None,
) -> BuildReport:
    """Make `out` the index of exactly these documents (a file, a folder, or documents).

    An index that is already there is replaced in one step; passages of documents that did not
    change are not embedded again. Raises `RetrievalInputError` (nothing changed) for bad
    documents or a folder that is not an index, `RetrievalError` when writing fails.
    """
    build = Build(Path(out), settings or ChunkSettings(), embedder, progress)
    return build.run(docs, extend=False)


def add_documents(
    index: str | Path,
    docs: str | Path | Iterable[Document],
    *,
    progress: Progress | None = None,
    embedder: Embedder | None = None,
) -> BuildReport:
    """Add documents to an index, or replace those of the same id; the others stay.

    Only passages of new and changed documents are embedded, with the index's own chunking.
    Raises as `build_index` does, and `BadIndex` if the index cannot be used as it is.
    """
    settings = read_manifest(Path(index)).chunking
    return Build(Path(index), settings, embedder, progress).run(docs, extend=True)
