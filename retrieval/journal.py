"""Vectors computed so far by a build, so that an interrupted one continues.

An append-only file of fixed-size records: sha256 of the embedded text, the vector, a CRC.
A record torn by a crash fails its CRC and is cut off with everything after it.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.embedding import Vectors

KEY, CRC = 32, 4


def text_key(text: str) -> bytes:
    """What a vector is filed under: the sha256 of the embedded text."""
    return hashlib.sha256(text.encode("utf-8")).digest()


class Journal:
    """The journal of one embedding model; opening it repairs a torn end."""

    def __init__(self, file: Path, dimensions: int) -> None:
        self._dimensions = dimensions
        self._size = KEY + 4 * dimensions + CRC
        self._places: dict[bytes, int] = {}
        self._file = open(file, "a+b")  # noqa: SIM115, PTH123 - closed by close()
        self._recover()

    def _recover(self) -> None:
        """Index the records that are whole and cut the file after the last of them."""
        self._file.seek(0)
        while len(record := self._file.read(self._size)) == self._size:
            body, crc = record[:-CRC], record[-CRC:]
            if zlib.crc32(body).to_bytes(CRC, "little") != crc:
                break
            self._places[body[:KEY]] = len(self._places)
        self._records = len(self._places)
        self._file.truncate(self._records * self._size)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def vector(self, key: bytes) -> Vectors:
        """The vector filed under `key`, shape (dimensions,)."""
        self._file.seek(self._places[key] * self._size + KEY)
        return np.frombuffer(self._file.read(4 * self._dimensions), dtype="<f4")

    def append(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """File `vectors` under `keys` and hand them to the operating system."""
        self._file.seek(0, os.SEEK_END)
        for key, vector in zip(keys, vectors, strict=True):
            if key not in self._places:
                body = key + vector.astype("<f4").tobytes()
                self._file.write(body + zlib.crc32(body).to_bytes(CRC, "little"))
                self._places[key] = self._records
                self._records += 1
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
