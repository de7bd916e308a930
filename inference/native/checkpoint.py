"""Tensors of a safetensors checkpoint by name, read one at a time."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from inference.errors import InferenceError


class Table:
    """Rows of a tensor [rows, width], read from the file when they are asked for.

    Looked up in a memory map instead, each row would keep the pages around it in memory.
    """

    def __init__(self, file: Path, tensor: str, rows: int, width: int, dtype: torch.dtype) -> None:
        self.rows, self.width, self._dtype = rows, width, dtype
        self._file = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        # safetensors: the header's length in 8 bytes, the header as JSON, then the tensors.
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        header = json.loads(os.pread(self._file, length, 8))
        self._begin = 8 + length + int(header[tensor]["data_offsets"][0])
        self._bytes = width * dtype.itemsize

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [len(ids), width] in the file's type."""
        found = bytearray()
        for row in ids.tolist():
            found += os.pread(self._file, self._bytes, self._begin + row * self._bytes)
        return torch.frombuffer(found, dtype=self._dtype).view(-1, self.width)


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

    def table(self, tensor: str) -> Table:
        """A tensor of two dimensions whose rows are looked up in the file."""
        shape, dtype = self.read(tensor).shape, self.read(tensor).dtype
        return Table(self._where[tensor], tensor, int(shape[0]), int(shape[1]), dtype)

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
