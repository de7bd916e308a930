"""Where the texts of a workflow and its sub-workflows come from: files on disk, or a bundle.

A key names a text independent of the host: "shipped:NAME", or a path relative to the folder of
the main file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from inference.suggest import nearest
from workflows.errors import WorkflowInputError
from workflows.source import read_source

SHIPPED = "shipped:"
"""What the key of a workflow of the library begins with."""

SUFFIXES = (".yaml", ".yml")


class Shelf(Protocol):
    """Gives the text for a key."""

    def text(self, key: str) -> str:
        """The text; raises WorkflowInputError where there is none."""
        ...

    def label(self, key: str) -> str:
        """The key as an error message names it."""
        ...


class Disk:
    """Files under one folder, and the library of this installation.

    The file `main` may be a link; no other may lead out of the folder.
    """

    def __init__(self, folder: Path, main: str = "") -> None:
        self._folder = folder
        self._main = main

    def text(self, key: str) -> str:
        """The text of the file."""
        path = self._path(key)
        trusted = key == self._main or key.startswith(SHIPPED)
        if not trusted and not path.resolve().is_relative_to(self._folder.resolve()):
            raise outside(key)
        return read_source(path)

    def label(self, key: str) -> str:
        """The path of the file."""
        return str(self._path(key))

    def _path(self, key: str) -> Path:
        if key.startswith(SHIPPED):
            return library() / f"{key.removeprefix(SHIPPED)}.yaml"
        return self._folder / key


class Bundle:
    """Texts that were handed in; with `shipped` also those of this installation."""

    def __init__(self, texts: Mapping[str, str], *, shipped: bool = False) -> None:
        self._texts = texts
        self._shipped = Disk(library()) if shipped else None

    def text(self, key: str) -> str:
        """The text of the bundle."""
        if key in self._texts:
            return self._texts[key]
        if self._shipped is not None and key.startswith(SHIPPED):
            return self._shipped.text(key)
        raise WorkflowInputError(
            f"the workflow {key!r} is not among the files that came along; "
            f"{nearest(key, self._texts)}"
        )

    def label(self, key: str) -> str:
        """The key itself."""
        return key


def library() -> Path:
    """The folder of the shipped workflows."""
    return Path(str(files("workflows"))) / "library"


def shipped_workflows() -> list[str]:
    """Names of the workflows in the package, sorted."""
    return sorted(path.stem for path in library().glob("*.yaml"))


def key_of_child(name: str, caller: str) -> str:
    """The key that a name means in the file of another key; raises WorkflowInputError."""
    if name in shipped_workflows():
        return SHIPPED + name
    if posixpath.basename(name) == name and not name.endswith(SUFFIXES):
        raise unknown(name)
    if caller.startswith(SHIPPED):
        raise unknown(name)
    folder = posixpath.dirname(caller)
    key = posixpath.normpath(posixpath.join(folder, name))
    if posixpath.isabs(key) or posixpath.relpath(key, folder or ".").startswith(".."):
        raise outside(name)
    return key


def outside(name: str) -> WorkflowInputError:
    """The error for a sub-workflow that is not where it may be."""
    return WorkflowInputError(
        f"the sub-workflow {name!r} lies outside the folder of the file that calls it; "
        "move it there"
    )


def unknown(name: str) -> WorkflowInputError:
    """The error for a name that is not shipped."""
    return WorkflowInputError(
        f"unknown workflow {name!r}; {nearest(name, shipped_workflows())} "
        "(`ragwright workflows list` shows all; a path to a .yaml file works too)"
    )
