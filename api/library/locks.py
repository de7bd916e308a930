"""Locks of items: one holder in all processes, taken in one thread and let go in another."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout


class Locks:
    """The locks that this process holds; the system lets go of them when it ends."""

    def __init__(self) -> None:
        self._held: dict[Path, FileLock] = {}
        self._changed = threading.Condition()

    def take(self, file: Path, seconds: float) -> bool:
        """Hold a lock, waiting up to `seconds` for it; False if somebody else kept it."""
        until = time.monotonic() + seconds
        lock = FileLock(file, thread_local=False)
        with self._changed:
            while file in self._held:
                if not self._changed.wait(max(until - time.monotonic(), 0)):
                    return False
            self._held[file] = lock
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=max(until - time.monotonic(), 0))
        except Timeout:
            self._drop(file)
            return False
        except BaseException:
            self._drop(file)
            raise
        return True

    def give(self, file: Path) -> None:
        """Let go of a lock; nothing happens if it is not held."""
        with self._changed:
            lock = self._held.get(file)
        if lock is not None:
            lock.release()
            self._drop(file)

    def held(self, file: Path) -> bool:
        """True if anybody in any process holds it."""
        if not self.take(file, 0):
            return True
        self.give(file)
        return False

    def _drop(self, file: Path) -> None:
        with self._changed:
            self._held.pop(file, None)
            self._changed.notify_all()
