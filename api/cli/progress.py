"""Progress bars of long work, on standard error and on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from retrieval.build import Progress

UNITS = {"read": " documents", "embed": " passages"}


@contextmanager
def build_progress() -> Iterator[Progress]:
    """A callback that draws one bar per stage of an index build."""
    bars: dict[str, tqdm[Any]] = {}

    def update(stage: str, done: int, total: int | None) -> None:
        if stage not in bars:
            bars[stage] = tqdm(
                desc=stage,
                total=total,
                unit=UNITS.get(stage, ""),
                file=sys.stderr,
                disable=not sys.stderr.isatty(),
            )
        bars[stage].update(done - bars[stage].n)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()
