"""The manifest of an index: what its files must be, checked before any of them is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval.chunking import ChunkSettings
from retrieval.errors import BadIndex

NAME = "manifest.json"
FORMAT = "ragwright-index"
VERSION = 2
GENERATION = re.compile(r"[0-9a-f]{16}r*")
"""Names of the folders with the files of an index: a hash of their content."""
REBUILD = "build it again with: ragwright index build DOCS --out DIR"


class Part(BaseModel):
    """Base of the sections of a manifest: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Part):
    """Size in bytes and sha256 of one file."""

    bytes: int = Field(ge=0)
    sha256: str


class ModelEntry(Part):
    """The embedder that made the vectors."""

    name: str
    sha256: str
    dimensions: int


class Manifest(Part):
    """Everything an index says about itself; two builds of the same data give the same one."""

    format: str = FORMAT
    version: int = VERSION
    generation: str
    documents: int
    passages: int
    model: ModelEntry
    chunking: ChunkSettings
    libraries: dict[str, str]
    files: dict[str, FileEntry]

    def encode(self) -> bytes:
        """Bytes of manifest.json: sorted keys, and a hash of itself as the last line."""
        body = json.dumps(self.model_dump(), indent=1, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(body.encode("utf-8")).hexdigest()
        return f'{{"manifest": {body},\n"sha256": "{digest}"}}\n'.encode()

    def folder(self, index: Path) -> Path:
        """Where the files of this generation lie."""
        return index / self.generation


def is_index(folder: Path) -> bool:
    """True if `folder` claims to be an index."""
    return (folder / NAME).is_file()


def read_manifest(index: Path) -> Manifest:
    """Manifest of the index folder, checked against its own hash; `BadIndex` otherwise."""
    file = index / NAME
    if not index.is_dir():
        raise BadIndex(f"{index}: no such index folder; {REBUILD}")
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise BadIndex(f"{index}: not an index, it has no {NAME}; {REBUILD}") from None
    except OSError as error:
        raise BadIndex(f"{file}: {error.strerror}; make the index readable") from None
    try:
        whole: Any = json.loads(content)
        found = whole["manifest"]
        if found.get("format") == FORMAT and found.get("version") != VERSION:
            raise BadIndex(
                f"{file}: format version {found.get('version')!r}, this program reads "
                f"{VERSION}; {REBUILD}"
            )
        manifest = Manifest.model_validate(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError):
        raise BadIndex(f"{file}: damaged, not a readable manifest; {REBUILD}") from None
    if manifest.encode() != content or manifest.format != FORMAT:
        raise BadIndex(f"{file}: damaged, its content does not match its own hash; {REBUILD}")
    return manifest


def entry(file: Path) -> FileEntry:
    """Size and hash of a file as they are on disk."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return FileEntry(bytes=os.fstat(content.fileno()).st_size, sha256=digest)


def verify(index: Path, manifest: Manifest) -> None:
    """Check presence, size and hash of every file; `BadIndex` names the first bad one."""
    folder = manifest.folder(index)
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not GENERATION.fullmatch(manifest.generation):
            raise BadIndex(f"{index / NAME}: the file name {name!r} leaves the index; {REBUILD}")
        try:
            found = entry(file)
        except OSError as error:
            raise BadIndex(f"{file}: {error.strerror or error}; {REBUILD}") from None
        if found.bytes != expected.bytes:
            raise BadIndex(
                f"{file}: truncated or changed, {found.bytes} bytes instead of "
                f"{expected.bytes}; {REBUILD}"
            )
        if found.sha256 != expected.sha256:
            raise BadIndex(f"{file}: changed since the index was built (sha256); {REBUILD}")
