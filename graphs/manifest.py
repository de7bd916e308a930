"""The manifest of a graph folder: what its files must be, checked before any of them is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graphs.errors import BadGraph
from retrieval.manifest import GENERATION, NAME, FileEntry, Part, entry

FORMAT = "ragwright-graph"
VERSION = 1
REBUILD = "build it again with: ragwright graph build FILE --out DIR"


class GraphManifest(Part):
    """Everything a graph says about itself; two builds of the same facts give the same one."""

    format: str = FORMAT
    version: int = VERSION
    generation: str
    triples: int
    entities: int
    relations: dict[str, int]
    files: dict[str, FileEntry]

    def encode(self) -> bytes:
        """Bytes of manifest.json: sorted keys, and a hash of itself as the last line."""
        body = json.dumps(self.model_dump(), indent=1, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(body.encode("utf-8")).hexdigest()
        return f'{{"manifest": {body},\n"sha256": "{digest}"}}\n'.encode()

    def folder(self, graph: Path) -> Path:
        """Where the files of this generation lie."""
        return graph / self.generation


def is_graph(folder: Path) -> bool:
    """True if `folder` claims to be a graph folder."""
    try:
        whole = json.loads((folder / NAME).read_bytes())
        return bool(whole["manifest"]["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_manifest(graph: Path) -> GraphManifest:
    """Manifest of a graph folder, checked against its own hash; BadGraph otherwise."""
    file = graph / NAME
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadGraph(f"{graph}: not a graph folder, it has no {NAME}; {REBUILD}") from None
    except OSError as error:
        raise BadGraph(f"{file}: {error.strerror}; make the graph readable") from None
    try:
        found: Any = json.loads(content)["manifest"]
        if found.get("format") == FORMAT and found.get("version") != VERSION:
            raise BadGraph(
                f"{file}: format version {found.get('version')!r}, this program reads "
                f"{VERSION}; {REBUILD}"
            )
        manifest = GraphManifest.model_validate(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError):
        raise BadGraph(f"{file}: damaged, not a readable manifest; {REBUILD}") from None
    if manifest.encode() != content or manifest.format != FORMAT:
        raise BadGraph(f"{file}: damaged, its content does not match its own hash; {REBUILD}")
    return manifest


def fingerprint(graph: Path) -> str:
    """sha256 of the manifest, which holds the hash of every file; BadGraph where there is none."""
    return hashlib.sha256(read_manifest(graph).encode()).hexdigest()


def verify(graph: Path, manifest: GraphManifest) -> None:
    """Check presence, size and hash of every file; BadGraph names the first bad one."""
    for name, expected in manifest.files.items():
        file = manifest.folder(graph) / name
        if Path(name).name != name or not GENERATION.fullmatch(manifest.generation):
            raise BadGraph(f"{graph / NAME}: the file name {name!r} leaves the graph; {REBUILD}")
        try:
            found = entry(file)
        except OSError as error:
            raise BadGraph(f"{file}: {error.strerror or error}; {REBUILD}") from None
        if found != expected:
            raise BadGraph(f"{file}: changed since the graph was built; {REBUILD}")
