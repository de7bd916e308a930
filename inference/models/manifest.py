"""What a model folder must hold: sizes, times and digests, written next to the files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PACKAGES = ("ragwright", "torch", "transformers", "gguf", "safetensors")


def write_manifest(folder: Path, name: str, source: dict[str, Any]) -> None:
    """Record every file of `folder` with sha256, size and mtime_ns."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256(path),
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    versions = {package: version(package) for package in PACKAGES}
    _write(folder, {"name": name, "source": source, "versions": versions, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`; raises ValueError (or OSError) when it cannot be read."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{folder / MANIFEST} is not a manifest")
    return manifest


def fault(folder: Path, source: dict[str, Any] | None = None) -> str | None:
    """What is wrong with a model folder, or None; `source` is where it should have come from.

    Sizes and times are compared always; a digest is computed only where the time differs, and
    a file that proves intact gets its recorded time refreshed.
    """
    if not folder.is_dir():
        return "is not there"
    try:
        manifest = read_manifest(folder)
        if source is not None and manifest["source"] != source:
            return "was made from another source"
        touched = False
        for name, facts in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"lacks {name}"
            status = path.stat()
            if status.st_size != facts["size"]:
                return f"has {name} at {status.st_size} instead of {facts['size']} bytes"
            if status.st_mtime_ns != facts["mtime_ns"]:
                if sha256(path) != facts["sha256"]:
                    return f"has a {name} whose sha256 differs from the manifest"
                facts["mtime_ns"], touched = status.st_mtime_ns, True
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"has no readable {MANIFEST} ({type(error).__name__}: {error})"
    if touched:
        # A cache on a read-only disk stays usable; it is only verified again next time.
        with contextlib.suppress(OSError):
            _write(folder, manifest)
    return None


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    scratch = folder / f".{MANIFEST}.{os.getpid()}"
    scratch.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(folder / MANIFEST)
