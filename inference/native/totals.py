"""What an engine has spent since it was opened, counted at the door of the step loop.

It is counted from the rows that leave the loop, not from the outputs that are made of them, so
that the one can be held against the other.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from inference.idealized import IdealizedRuntime
from inference.requests import FinishReason, tick

if TYPE_CHECKING:
    from inference.native.sequence import Sequence as Row
    from inference.native.task import Task


@dataclass(frozen=True, slots=True)
class Spent:
    """Sums over pieces of work that left the engine.

    `prompt_tokens`, `cached_tokens`, `completion_tokens` and `seconds` are what `Usage` means by
    them, `resumed_tokens`, `forwards` and `idealized_seconds` what `Stats` does (None while no
    model was calibrated); `kv_bytes` sums the largest number of bytes that each piece held.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    resumed_tokens: int = 0
    forwards: int = 0
    kv_bytes: int = 0
    seconds: float = 0.0
    idealized_seconds: float | None = None

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(_add(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


def _add(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else one + other


@dataclass(frozen=True, slots=True)
class Totals:
    """What left an engine, by door.

    `answers` are generations that came out as an `Output`, whatever ended them; `lost` are those
    that a failing forward pass took down, which have none. `scores` counts one request for each
    prompt, and the tokens of its continuations as prompt tokens; `readings` are exports.
    """

    answers: Spent = Spent()
    lost: Spent = Spent()
    scores: Spent = Spent()
    readings: Spent = Spent()


@dataclass(slots=True)
class _Count:
    """One piece of work on its way."""

    forwards: int = 0
    peak: int = 0  # bytes
    read: int = 0  # tokens of its first row that the cache has held


@dataclass
class Counter:
    """Counts work that goes through the step loop; `token_bytes` is one token in the store."""

    token_bytes: int
    runtime: IdealizedRuntime | None = None
    totals: Totals = Totals()
    _open: dict[int, _Count] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stepped(self, task: Task) -> None:
        """A forward pass computed something for a task."""
        count = self._open.setdefault(id(task), _Count())
        count.forwards += 1
        count.peak = max(count.peak, sum(self._bytes(row) for row in task.rows))
        count.read = max(count.read, task.rows[0].cached)

    def left(self, task: Task, outcome: FinishReason | Exception) -> None:
        """A task leaves the loop; its job says when it began and when it left."""
        spent = self._spent(task, self._open.pop(id(task), _Count()))
        door = task.door
        if door == "answers" and isinstance(outcome, Exception):
            door = "lost"
        with self._lock:
            doors = {f.name: getattr(self.totals, f.name) for f in fields(Totals)}
            self.totals = Totals(**{**doors, door: doors[door] + spent})

    def _bytes(self, row: Row) -> int:
        return row.cache.peak if row.cache is not None else row.cached * self.token_bytes

    def _spent(self, task: Task, count: _Count) -> Spent:
        job, main = task.job, task.rows[0]
        continued = task.continued
        produced = 0 if task.door != "answers" else len(main.ids) - main.prompt - job.resumed
        known = main.prompt + job.resumed
        idealized = None
        if self.runtime is not None and task.door == "answers":
            computed = min(count.read, known) - main.reused
            idealized = self.runtime.seconds(computed, produced) if computed > 0 else 0.0
        return Spent(
            requests=0 if continued else 1,
            prompt_tokens=continued or sum(row.prompt for row in task.rows),
            cached_tokens=sum(min(row.reused, row.prompt) for row in task.rows),
            completion_tokens=produced,
            resumed_tokens=job.resumed if task.door == "answers" else 0,
            forwards=count.forwards,
            kv_bytes=count.peak,
            seconds=tick(job.seconds) if not continued else 0.0,
            idealized_seconds=None if idealized is None else tick(idealized),
        )
