"""The files of a generation while it is being written, in a folder beside the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retrieval.chunking import ChunkSettings, chunk
from retrieval.documents import Document
from retrieval.embedding import Embedder
from retrieval.errors import BadDocuments
from retrieval.store import DOCUMENTS, TEXTS

if TYPE_CHECKING:
    from retrieval.store import Index

RAW_SPANS = "spans.raw"
COLUMNS = 6
"""Document, start, end, byte start, byte end, and the row in the old index or -1."""
FRESH = -1


def content_hash(document: Document) -> str:
    """sha256 of what a document's passages depend on: its title and its text."""
    whole = hashlib.sha256()
    for part in (document.title, document.text):
        encoded = part.encode("utf-8")
        whole.update(len(encoded).to_bytes(8, "little") + encoded)
    return whole.hexdigest()


class Staging:
    """Writes documents and passages as they stream in; rows of unchanged documents are kept."""

    def __init__(
        self, folder: Path, embedder: Embedder, settings: ChunkSettings, old: Index | None
    ) -> None:
        self.folder = folder
        self.documents = self.passages = 0
        self._embedder, self._settings, self._old = embedder, settings, old
        self.identifiers: set[str] = set()
        self._bytes = 0

    def __enter__(self) -> Staging:
        self._documents = (self.folder / DOCUMENTS).open("wb")
        self._texts = (self.folder / TEXTS).open("wb")
        self._spans = (self.folder / RAW_SPANS).open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._documents, self._texts, self._spans):
            file.close()

    def add(self, document: Document) -> None:
        """Write one document; its passages come from the old index if its content is there."""
        if document.id in self.identifiers:
            raise BadDocuments(
                [f"{document.source}: the document id {document.id!r} appears twice"]
            )
        digest = content_hash(document)
        number = self._old.numbers.get(document.id) if self._old else None
        if self._old and number is not None and self._old.document(number)["sha256"] == digest:
            rows = self._old.rows_of(number)
            spans = [(int(self._old.spans[r, 1]), int(self._old.spans[r, 2]), r) for r in rows]
        else:
            settings = self._settings
            found = chunk(document.text, self._embedder.offsets, settings.tokens, settings.overlap)
            spans = [(start, end, FRESH) for start, end in found]
        texts = [document.text[start:end] for start, end, _ in spans]
        self._write(document.id, self._row(document, digest), spans, texts)

    def keep_missing(self) -> None:
        """Carry over the documents of the old index that were not added."""
        if self._old is None:
            return
        for number in range(self._old.manifest.documents):
            row = self._old.document(number)
            if row["id"] not in self.identifiers:
                rows = self._old.rows_of(number)
                spans = [(int(self._old.spans[r, 1]), int(self._old.spans[r, 2]), r) for r in rows]
                self._write(row["id"], row, spans, [self._old.text(r) for r in rows])

    def _row(self, document: Document, digest: str) -> dict[str, Any]:
        return {
            "id": document.id,
            "title": document.title,
            "source": document.source,
            "metadata": dict(document.metadata),
            "sha256": digest,
        }

    def _write(
        self,
        identifier: str,
        row: dict[str, Any],
        spans: list[tuple[int, int, int]],
        texts: list[str],
    ) -> None:
        self.identifiers.add(identifier)
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        self._documents.write(line.encode("utf-8") + b"\n")
        rows = np.empty((len(spans), COLUMNS), dtype=np.int64)
        for place, ((start, end, origin), text) in enumerate(zip(spans, texts, strict=True)):
            encoded = text.encode("utf-8")
            self._texts.write(encoded)
            after = self._bytes + len(encoded)
            rows[place] = (self.documents, start, end, self._bytes, after, origin)
            self._bytes = after
        self._spans.write(rows.tobytes())
        self.documents += 1
        self.passages += len(spans)


class Staged:
    """What was staged, read back in order so that memory does not grow with the corpus."""

    def __init__(self, folder: Path, passages: int, identifiers: set[str]) -> None:
        self.folder = folder
        self.identifiers = identifiers
        self.rows: npt.NDArray[np.int64] = np.memmap(
            folder / RAW_SPANS, dtype=np.int64, mode="r", shape=(passages, COLUMNS)
        )

    def spans(self, block: int) -> Iterator[npt.NDArray[np.int64]]:
        """The first five columns, `block` rows at a time."""
        for low in range(0, len(self.rows), block):
            yield self.rows[low : low + block, :5]

    def passages(self) -> Iterator[tuple[int, str, str]]:
        """(row in the old index or -1, title, text) of every passage, in order."""
        with (
            (self.folder / DOCUMENTS).open("rb") as documents,
            (self.folder / TEXTS).open("rb") as texts,
        ):
            current, title = -1, ""
            for row in self.rows:
                while current < row[0]:
                    title = json.loads(documents.readline())["title"]
                    current += 1
                yield int(row[5]), title, texts.read(int(row[4] - row[3])).decode("utf-8")
