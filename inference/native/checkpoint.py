"""Tensors of a safetensors checkpoint by name, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from inference.errors import InferenceError


class Checkpoint:
    """The tensors of a model folder, from one file or from several with an index."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        self._folder = folder
        self._files: dict[Path, Any] = {}
        self._stack = ExitStack()
        self._where: dict[str, Path] = {}
        for file in self._list():
            handle = self._open(file)
            self._files[file] = handle
            self._where.update(dict.fromkeys(handle.keys(), file))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._stack.close()

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def read(self, tensor: str) -> torch.Tensor:
        """A tensor, still in the file's pages; InferenceError where it is missing."""
        if tensor not in self._where:
            raise InferenceError(
                f"model {self._name!r} in {self._folder} lacks the tensor {tensor!r}; "
                "fetch or convert the checkpoint again"
            )
        found: torch.Tensor = self._files[self._where[tensor]].get_tensor(tensor)
        return found

    def find(self, tensor: str) -> torch.Tensor | None:
        """A tensor, or None where the checkpoint has none of that name."""
        return self.read(tensor) if tensor in self else None

    def _list(self) -> list[Path]:
        index = self._folder / "model.safetensors.index.json"
        if not index.is_file():
            return [self._folder / "model.safetensors"]
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            inside = [self._folder / name for name in sorted(names)]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._broken(f"{index.name} cannot be read ({error})") from error
        for path in inside:
            if path.parent != self._folder:
                raise self._broken(f"{index.name} names {path.name!r} outside the folder")
        return inside

    def _open(self, path: Path) -> Any:
        if not path.is_file():
            others = sorted(p.name for p in self._folder.glob("*") if p.suffix in (".bin", ".pt"))
            found = f" and only {others[0]!r}, which may hold code" if others else ""
            raise self._broken(f"there is no {path.name}{found}")
        try:
            return self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise self._broken(f"{path.name} is damaged ({error})") from error

    def _broken(self, what: str) -> InferenceError:
        return InferenceError(
            f"model {self._name!r} in {self._folder} cannot be loaded: {what}; "
            "fetch or convert the checkpoint again, as safetensors"
        )
