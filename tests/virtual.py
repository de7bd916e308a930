"""An event loop whose time passes at once: what would take a minute is told in a second."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Waits for nothing: what it should have waited for goes by on the loop's clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop for work that waits for timers only."""

    def __init__(self) -> None:
        self.chosen = _Selector()
        super().__init__(self.chosen)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.chosen.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Result of a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def now() -> float:
    """Time on the running loop's clock."""
    return asyncio.get_running_loop().time()
