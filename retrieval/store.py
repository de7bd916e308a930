"""An opened index: passages, vectors and metadata, read from disk as they are needed.

Files of a generation: documents.jsonl (a row per document), spans.npy (a row per passage:
document, start, end in characters, start and end in bytes of texts.txt), texts.txt (UTF-8 of
all passages), vectors.npy (float32, unit rows), bm25.* (the arrays and vocabulary of bm25s).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from retrieval.arrays import map_array
from retrieval.bm25 import FILES as BM25_FILES
from retrieval.bm25 import Bm25
from retrieval.errors import BadIndex, unknown_name
from retrieval.manifest import REBUILD, Manifest, read_manifest, verify
from retrieval.ranking import Mask
from retrieval.retriever import Passage

if TYPE_CHECKING:
    from retrieval.dense import Dense
    from retrieval.embedding import Embedder

DOCUMENTS, SPANS, TEXTS, VECTORS = "documents.jsonl", "spans.npy", "texts.txt", "vectors.npy"


class Index:
    """One generation of an index; safe to share between threads and retrievers."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.folder = manifest.folder(path)
        self._lock = Lock()
        self._dense: Dense | None = None
        self._bm25: Bm25 | None = None
        self._rows = _Lines(self.folder / DOCUMENTS)
        self._texts = _map(self.folder / TEXTS)
        self.spans: npt.NDArray[np.int64] = map_array(self.folder / SPANS)
        self.vectors: npt.NDArray[np.float32] = map_array(self.folder / VECTORS)
        self._words = {
            name: (map_array if name.endswith(".npy") else _map)(self.folder / name)
            for name in BM25_FILES
        }
        self._first = np.searchsorted(self.spans[:, 0], np.arange(manifest.documents + 1))

    def __len__(self) -> int:
        """Number of passages."""
        return self.manifest.passages

    def document(self, number: int) -> dict[str, Any]:
        """Row of a document: id, title, source, metadata, sha256 of its content."""
        row: dict[str, Any] = json.loads(self._rows[number])
        return row

    def rows_of(self, number: int) -> range:
        """Rows of the passages of a document."""
        return range(int(self._first[number]), int(self._first[number + 1]))

    def text(self, row: int) -> str:
        """Text of a passage."""
        return self._texts[int(self.spans[row, 3]) : int(self.spans[row, 4])].decode("utf-8")

    def passage(self, row: int) -> Passage:
        """The passage at `row` (0 <= row < len(self))."""
        number, start, end = (int(value) for value in self.spans[row, :3])
        document = self.document(number)
        return Passage(
            id=f"{document['id']}#{row - int(self._first[number])}",
            document_id=document["id"],
            title=document["title"],
            source=document["source"],
            start=start,
            end=end,
            text=self.text(row),
            metadata=document["metadata"],
        )

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Document id -> number of the document."""
        return {self.document(n)["id"]: n for n in range(self.manifest.documents)}

    def row(self, passage_id: str) -> int | None:
        """Row of a passage id, or None if the index has no such passage."""
        document_id, _, ordinal = passage_id.rpartition("#")
        number = self.numbers.get(document_id)
        if number is None or not ordinal.isdecimal() or str(int(ordinal)) != ordinal:
            return None
        rows = self.rows_of(number)
        return rows[int(ordinal)] if int(ordinal) < len(rows) else None

    def allowed(self, exclude: Collection[str], where: Mapping[str, Any] | None) -> Mask | None:
        """Which passages a search may return; None means all of them."""
        excluded = [row for row in map(self.row, exclude) if row is not None]
        if not excluded and not where:
            return None
        mask = self._matching(where) if where else np.ones(len(self), dtype=np.bool_)
        mask[excluded] = False
        return mask

    def _matching(self, where: Mapping[str, Any]) -> Mask:
        known: set[str] = set()
        fits = np.zeros(self.manifest.documents, dtype=np.bool_)
        for number in range(self.manifest.documents):
            metadata = self.document(number)["metadata"]
            known.update(metadata)
            fits[number] = all(
                key in metadata and _equals(metadata[key], wanted) for key, wanted in where.items()
            )
        for key in where:
            if key not in known:
                raise unknown_name("metadata key", key, known)
        return fits[self.spans[:, 0]]

    @property
    def dense(self) -> Dense:
        """The vector part, loaded once."""
        from retrieval.dense import Dense

        with self._lock:
            if self._dense is None:
                self._dense = Dense(self.vectors, self.embedder())
            return self._dense

    @property
    def bm25(self) -> Bm25:
        """The lexical part, loaded once."""
        with self._lock:
            if self._bm25 is None:
                self._bm25 = Bm25.load(self._words, len(self))
            return self._bm25

    def embedder(self) -> Embedder:
        """The installed embedder, if it is the one that made the vectors; else `BadIndex`."""
        from retrieval.embedding import default_embedder

        embedder, made_by = default_embedder(), self.manifest.model
        if embedder.sha256 != made_by.sha256:
            raise BadIndex(
                f"{self.folder / VECTORS}: made by the model {made_by.name} "
                f"{made_by.sha256[:12]}, but the installed {embedder.name} is "
                f"{embedder.sha256[:12]}; {REBUILD}"
            )
        return embedder


class _Lines:
    """Random access to the lines of a file through a memory map."""

    def __init__(self, file: Path) -> None:
        self._bytes = _map(file)
        ends = np.flatnonzero(np.frombuffer(self._bytes, dtype=np.uint8) == ord("\n"))
        self._ends = np.concatenate(([-1], ends))

    def __getitem__(self, number: int) -> bytes:
        return self._bytes[int(self._ends[number]) + 1 : int(self._ends[number + 1])]


def _map(file: Path) -> mmap.mmap | bytes:
    """Read-only view of a file; an empty file cannot be mapped."""
    with file.open("rb") as content:
        if file.stat().st_size == 0:
            return b""
        return mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)


def _equals(value: Any, wanted: Any) -> bool:
    """JSON equality; a list of wanted values means any of them; true is not 1."""
    if isinstance(wanted, list | tuple | set | frozenset):
        return any(_same(value, one) for one in wanted)
    return _same(value, wanted)


def _same(value: Any, wanted: Any) -> bool:
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


_open: WeakValueDictionary[tuple[Path, str], Index] = WeakValueDictionary()
_opening = Lock()


def open_index(path: str | Path) -> Index:
    """Open an index folder; retrievers over the same generation share one `Index`.

    The manifest and the hash of every file are checked before anything is read. Raises
    `BadIndex` naming the file that is missing, truncated or changed.
    """
    folder = Path(path)
    while True:
        manifest = read_manifest(folder)
        key = (folder.resolve(), manifest.generation)
        with _opening:
            if (index := _open.get(key)) is not None:
                return index
            try:
                verify(folder, manifest)
                index = _open[key] = Index(folder, manifest)
            except (BadIndex, FileNotFoundError):
                # a build that replaced the index meanwhile removed the generation we read
                if read_manifest(folder).generation == manifest.generation:
                    raise
                continue
        return index
