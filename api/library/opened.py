"""Retrievers kept open between searches, a bounded number of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from retrieval.retriever import Retriever

OPEN = 16
"""How many stay open; the one not used for longest goes first."""

Key = tuple[Path, str]


class Opened:
    """Open retrievers by the folder of a version and what they were opened with."""

    def __init__(self) -> None:
        self._found: OrderedDict[Key, Retriever] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, opener: Callable[[], Retriever]) -> Retriever:
        """The retriever of a key; opened if it is not open."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        found = opener()
        with self._lock:
            self._found[key] = found
            while len(self._found) > OPEN:
                self._found.popitem(last=False)
        return found

    def drop(self, folder: Path) -> None:
        """Let go of the retrievers below a folder."""
        with self._lock:
            for key in [key for key in self._found if key[0].is_relative_to(folder)]:
                del self._found[key]
