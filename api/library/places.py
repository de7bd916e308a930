"""Where a tenant's things lie. Names come from requests, so a path is made in this file only."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from api.library.errors import LibraryError, LibraryInputError
from inference.models import models_home

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
KINDS = ("index", "graph", "workflow")
TRASH = ".trash"


def library_home() -> Path:
    """The folder of all tenants, beside the models and runs."""
    return models_home().parent / "library"


def check_name(name: str, kind: str) -> str:
    """The name, if it is one; raises LibraryInputError."""
    if not NAME.fullmatch(name):
        raise LibraryInputError(
            f"the {kind} name {name[:80]!r} must be 1 to 64 letters, digits, '_', '.' and "
            "'-', the first a letter or digit"
        )
    return name


class Places:
    """Paths below one root; a link among them is refused wherever it leads."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def tenant(self, tenant: str) -> Path:
        """A tenant's folder: a hash, so that no name of a tenant is part of a path."""
        return self.root / hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def shelf(self, tenant: str, kind: str) -> Path:
        """Folder of a tenant's items of a kind."""
        assert kind in KINDS
        return self._plain(self.tenant(tenant) / kind)

    def item(self, tenant: str, kind: str, name: str) -> Path:
        """Folder (of a workflow: file) of one item; raises LibraryInputError for a bad name."""
        check_name(name, kind)
        suffix = ".yaml" if kind == "workflow" else ""
        return self._plain(self.shelf(tenant, kind) / f"{name}{suffix}")

    def lock(self, tenant: str, kind: str, name: str) -> Path:
        """The lock of one item, outside its folder, so that it outlives it."""
        return self._plain(self.tenant(tenant) / "locks" / f"{kind}.{check_name(name, kind)}")

    def quota_lock(self, tenant: str) -> Path:
        """Held while a tenant's use is counted and added to."""
        return self._plain(self.tenant(tenant) / "locks" / "quota")

    def trash(self, tenant: str) -> Path:
        """Where what is deleted goes before it is gone."""
        return self._plain(self.tenant(tenant) / TRASH)

    def _plain(self, path: Path) -> Path:
        for part in (path, *path.parents):
            if part == self.root:
                return path
            if part.is_symlink():
                raise LibraryError(f"{part}: a link inside the library; remove it")
        raise LibraryError(f"{path}: outside the library")


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; one that is linked several times counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(parent) / name).lstat()
            except FileNotFoundError:
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_size
    return total
