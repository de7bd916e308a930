"""One build of an index: stage documents, embed, index words, write the manifest, swap."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from retrieval.arrays import save_array, sync
from retrieval.bm25 import FILES as BM25_FILES
from retrieval.bm25 import TITLE_WEIGHT, Bm25
from retrieval.chunking import ChunkSettings
from retrieval.documents import Document, files, load
from retrieval.embedding import Embedder, Vectors, default_embedder
from retrieval.errors import BadIndex, RetrievalError, RetrievalInputError
from retrieval.journal import Journal, text_key
from retrieval.manifest import (
    GENERATION,
    NAME,
    FileEntry,
    Manifest,
    ModelEntry,
    entry,
    is_index,
    read_manifest,
    verify,
)
from retrieval.staging import FRESH, RAW_SPANS, Staged, Staging
from retrieval.store import DOCUMENTS, SPANS, TEXTS, VECTORS, Index, open_index

Progress = Callable[[str, int, int | None], None]
"""Called with a stage (`read` counts documents, `embed` passages), units done, units in all."""

BLOCK = 1024
"""Passages held in memory at a time."""
BATCH = 32
"""Passages embedded at a time, each batch entered in the journal."""
LOCK_SECONDS = 3600
LIBRARIES = ("bm25s", "numpy", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: counts of documents and passages in the index afterwards.

    `embedded` passages were computed, `reused` ones came from the old index or from an
    interrupted build; `removed` documents of the old index are no longer in it.
    """

    index: str
    documents: int
    passages: int
    embedded: int
    reused: int
    removed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


class Build:
    """Builds the index at `out`; `run` is called once."""

    def __init__(
        self,
        out: Path,
        settings: ChunkSettings,
        embedder: Embedder | None,
        progress: Progress | None,
    ) -> None:
        self.out = out.absolute()
        self.shown = str(out)
        self.settings = settings
        self.progress: Progress = progress or (lambda stage, done, total: None)
        self.given_embedder = embedder
        self.staging = self.out.parent / f".{self.out.name}.staging"
        self.new = self.staging / "new"
        self.embedded = 0

    def run(self, docs: str | Path | Iterable[Document], *, extend: bool) -> BuildReport:
        """Build from `docs`; `extend` keeps the documents of the old index that are not in it."""
        started = time.perf_counter()
        documents = self._documents(docs)
        self.embedder = self.given_embedder or default_embedder()
        with self._locked(), self._cleaned():
            old = self._old(required=extend)
            staged = self._stage(documents, old, extend)
            self._embed(staged, old)
            Bm25.write(self._passages(staged), self.new)
            manifest = self._finish(staged)
            self._swap(manifest)
        return BuildReport(
            index=self.shown,
            documents=manifest.documents,
            passages=manifest.passages,
            embedded=self.embedded,
            reused=manifest.passages - self.embedded,
            removed=len(set(old.numbers) - staged.identifiers) if old else 0,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _documents(self, docs: str | Path | Iterable[Document]) -> Iterable[Document]:
        """The documents to index; refuses what can be refused before anything is written."""
        if self.out.exists() and not is_index(self.out) and not _is_empty_folder(self.out):
            raise RetrievalInputError(
                f"{self.shown}: exists and is not an index; choose another folder or empty it"
            )
        if not isinstance(docs, str | Path):
            return docs
        files(docs, [])
        if self.out.resolve().is_relative_to(Path(docs).resolve()):
            raise RetrievalInputError(
                f"{self.shown}: the index would lie among the documents of {docs}; "
                "choose a folder outside"
            )
        return load(docs)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process builds into a folder at a time; a second one waits its turn."""
        file = self.out.parent / f".{self.out.name}.lock"
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file, timeout=LOCK_SECONDS):
                try:
                    yield
                finally:
                    file.unlink(missing_ok=True)  # a waiter notices and locks a file of its own
        except Timeout:
            raise RetrievalError(
                f"{self.shown}: another build has held the lock {file} for an hour; "
                "wait for it or stop it"
            ) from None
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> RetrievalError:
        remedy = "make the folder writable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free space there and run the same command again, it continues"
        return RetrievalError(
            f"{self.shown}: cannot write the index ({error.strerror or error}); "
            f"what was there before is unchanged; {remedy}"
        )

    @contextmanager
    def _cleaned(self) -> Iterator[None]:
        """Remove the staging folder, but keep a journal of vectors that a rerun can use."""
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir(parents=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(self.new, ignore_errors=True)
            if not any(file.stat().st_size for file in self.staging.glob("*.journal")):
                shutil.rmtree(self.staging, ignore_errors=True)
            raise
        shutil.rmtree(self.staging, ignore_errors=True)

    def _old(self, *, required: bool) -> Index | None:
        """The index to take unchanged passages from, or None if there is none that fits."""
        if not is_index(self.out) and not required:
            return None
        try:
            old = open_index(self.out)
            if required:
                self._check_model(old)
        except BadIndex:
            if required:
                raise
            return None  # a build does not need the old index, and replaces a damaged one
        made_by = old.manifest
        fits = made_by.chunking == self.settings and made_by.model == self._model_entry()
        return old if fits else None

    def _check_model(self, old: Index) -> None:
        if old.manifest.model != self._model_entry():
            made_by = old.manifest.model
            raise BadIndex(
                f"{old.folder / VECTORS}: made by the model {made_by.name} "
                f"{made_by.sha256[:12]}, but the installed {self.embedder.name} is "
                f"{self.embedder.sha256[:12]}; build the index again"
            )

    def _model_entry(self) -> ModelEntry:
        embedder = self.embedder
        return ModelEntry(
            name=embedder.name, sha256=embedder.sha256, dimensions=embedder.dimensions
        )

    def _stage(self, documents: Iterable[Document], old: Index | None, extend: bool) -> Staged:
        with Staging(self.new, self.embedder, self.settings, old) as staging:
            for number, document in enumerate(documents, start=1):
                staging.add(document)
                self.progress("read", number, None)
            if not staging.documents:
                raise RetrievalInputError("no documents were given; give at least one")
            if extend:
                staging.keep_missing()
        return Staged(self.new, staging.passages, staging.identifiers)

    def _passages(self, staged: Staged) -> Iterator[str]:
        """What BM25 reads of each passage: its title, weighted, and its text."""
        for _, title, text in staged.passages():
            yield f"{title}\n" * TITLE_WEIGHT + text

    def _embed(self, staged: Staged, old: Index | None) -> None:
        """Write vectors.npy: unchanged rows are copied, journalled ones read, others computed."""
        total = len(staged.rows)
        shape = (total, self.embedder.dimensions)
        journal = Journal(
            self.staging / f"{self.embedder.sha256[:16]}.journal", self.embedder.dimensions
        )
        passages = staged.passages()
        blocks = (
            self._block(list(islice(passages, BLOCK)), old, journal, low, total)
            for low in range(0, total, BLOCK)
        )
        try:
            save_array(self.new / VECTORS, shape, np.float32, blocks)
        finally:
            journal.close()
        self.progress("embed", total, total)

    def _block(
        self,
        block: list[tuple[int, str, str]],
        old: Index | None,
        journal: Journal,
        done: int,
        total: int,
    ) -> Vectors:
        out = np.empty((len(block), self.embedder.dimensions), dtype=np.float32)
        pending: list[tuple[int, str, bytes]] = []
        for place, (origin, _, text) in enumerate(block):
            if origin != FRESH and old is not None:
                out[place] = old.vectors[origin]
                continue
            key = text_key(text)
            if key in journal:
                out[place] = journal.vector(key)
            else:
                pending.append((place, text, key))
        pending.sort(key=lambda item: len(item[1]))
        settled = done + len(block) - len(pending)
        for low in range(0, len(pending), BATCH):
            batch = pending[low : low + BATCH]
            vectors = self.embedder.embed([text for _, text, _ in batch])
            out[[place for place, _, _ in batch]] = vectors
            journal.append([key for _, _, key in batch], vectors)
            self.embedded += len(batch)
            self.progress("embed", settled + low + len(batch), total)
        return out

    def _finish(self, staged: Staged) -> Manifest:
        """Write the spans, force everything to disk, and describe it."""
        save_array(self.new / SPANS, (len(staged.rows), 5), np.int64, staged.spans(BLOCK))
        (self.new / RAW_SPANS).unlink()
        files: dict[str, FileEntry] = {}
        for name in sorted((DOCUMENTS, SPANS, TEXTS, VECTORS, *BM25_FILES)):
            sync(self.new / name)
            files[name] = entry(self.new / name)
        listed = json.dumps({name: one.sha256 for name, one in files.items()})
        return Manifest(
            generation=hashlib.sha256(listed.encode("utf-8")).hexdigest()[:16],
            documents=len(staged.identifiers),
            passages=len(staged.rows),
            model=self._model_entry(),
            chunking=self.settings,
            libraries={name: version(name) for name in LIBRARIES},
            files=files,
        )

    def _swap(self, manifest: Manifest) -> None:
        """Move the generation in, replace the manifest (the commit), drop other generations."""
        self.out.mkdir(exist_ok=True)
        current = _current(self.out)
        if current is not None and current.generation == manifest.generation:
            if _intact(self.out, current):
                shutil.rmtree(self.new)  # the same content is there already
            else:
                manifest = manifest.model_copy(update={"generation": manifest.generation + "r"})
        target = manifest.folder(self.out)
        if self.new.exists():
            if target.exists():
                shutil.rmtree(target)  # of an interrupted build: no manifest names it
            self.new.rename(target)
        draft = self.staging / NAME
        draft.write_bytes(manifest.encode())
        sync(draft)
        sync(self.out)
        draft.replace(self.out / NAME)
        sync(self.out)
        for other in self.out.iterdir():
            if GENERATION.fullmatch(other.name) and other != target:
                shutil.rmtree(other, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _current(out: Path) -> Manifest | None:
    """The manifest in force, or None if there is none that can be read."""
    try:
        return read_manifest(out)
    except BadIndex:
        return None


def _intact(out: Path, manifest: Manifest) -> bool:
    try:
        verify(out, manifest)
    except BadIndex:
        return False
    return True
