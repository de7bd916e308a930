"""Key/value entries of earlier requests, found by the exact token ids they were computed from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Per layer (keys, values), each [1, heads, tokens, head_dim]."""


class PrefixCache:
    """Least recently used entries within a byte limit; 0 bytes turns it off.

    Tensors are shared with running requests and never written to: a request that continues
    from an entry appends to a copy. Safe from any thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[bytes, tuple[npt.NDArray[np.int64], Layers]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all key and value tensors held."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, ids: Sequence[int]) -> tuple[int, Layers]:
        """Length n of the longest cached prefix of `ids`, and views of its first n positions."""
        wanted = np.asarray(ids, dtype=np.int64)
        with self._lock:
            best, key = 0, b""
            for candidate, (cached, _) in self._entries.items():
                if (shared := _common(cached, wanted)) > best:
                    best, key = shared, candidate
            if not best:
                return 0, ()
            self._entries.move_to_end(key)
            layers = self._entries[key][1]
        return best, tuple((k[:, :, :best], v[:, :, :best]) for k, v in layers)

    def store(self, ids: Sequence[int], layers: Layers) -> None:
        """Keep the entries of `ids`; entries that are a beginning of it are dropped as covered."""
        size = layers_bytes(layers)
        wanted = np.asarray(ids, dtype=np.int64)
        if not 0 < size <= self._limit:
            return
        with self._lock:
            for key, (cached, held) in list(self._entries.items()):
                shared = _common(cached, wanted)
                if shared == len(wanted):  # an entry already covers this one
                    self._entries.move_to_end(key)
                    return
                if shared == len(cached):
                    del self._entries[key]
                    self._bytes -= layers_bytes(held)
            self._entries[wanted.tobytes()] = (wanted, layers)
            self._bytes += size
            while self._bytes > self._limit:
                _, (_, evicted) = self._entries.popitem(last=False)
                self._bytes -= layers_bytes(evicted)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0


def layers_bytes(layers: Layers) -> int:
    """Bytes of key and value tensors, from their own shapes."""
    return sum(t.numel() * t.element_size() for pair in layers for t in pair)


def _common(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
