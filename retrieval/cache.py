"""Indexes that are made on the way, for documents given by path to a run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from inference.models import models_home
from retrieval.build import Progress
from retrieval.chunking import ChunkSettings
from retrieval.documents import files
from retrieval.embedding import default_embedder
from retrieval.errors import BadDocuments, BadIndex
from retrieval.index import build_index
from retrieval.manifest import read_manifest, verify

FINGERPRINT = "docs.sha256"


def indexes_home() -> Path:
    """Where cached indexes lie: `indexes/` beside the folder of the models."""
    return models_home().parent / "indexes"


def index_for_docs(docs: str | Path, progress: Progress | None = None) -> Path:
    """The index folder of a file or folder of documents, built or brought up to date.

    The folder is kept in the cache, one per absolute path. Nothing is parsed when no file
    changed its name or content; otherwise only what changed is embedded. Raises
    `RetrievalInputError` for documents that cannot be used.
    """
    root = Path(docs)
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    out = indexes_home() / f"{_plain(root.resolve().name)}-{key}"
    settings = ChunkSettings()
    fingerprint = _fingerprint(root, settings)
    note = out / FINGERPRINT
    if note.is_file() and note.read_text(encoding="utf-8") == fingerprint and _sound(out):
        return out
    build_index(root, out, settings=settings, progress=progress)
    if _fingerprint(root, settings) == fingerprint:  # else files changed during the build
        draft = note.with_suffix(f".{os.getpid()}")
        draft.write_text(fingerprint, encoding="utf-8")
        draft.replace(note)
    return out


def _sound(out: Path) -> bool:
    try:
        verify(out, read_manifest(out))
    except BadIndex:
        return False
    return True


def _fingerprint(root: Path, settings: ChunkSettings) -> str:
    """Hash over the names and contents of the documents, the settings and the embedder."""
    faults: list[str] = []
    whole = hashlib.sha256(default_embedder().sha256.encode())
    whole.update(settings.model_dump_json().encode() + os.fsencode(root))
    for file, name in files(root, faults):
        try:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            faults.append(f"{file}: {error.strerror}; make the file readable or remove it")
            continue
        whole.update(f"{digest} {name}\n".encode())
    if faults:
        raise BadDocuments(faults)
    return whole.hexdigest()


def _plain(name: str) -> str:
    """A name that is safe as part of a folder name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)[:40] or "docs"
