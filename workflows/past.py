"""What earlier attempts at a run did, read back from its journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference import Usage


@dataclass(frozen=True)
class Past:
    """What earlier attempts of a resumed run did: their step records and active seconds.

    `produced` holds the tokens of generations that were cut off, by task and call.
    """

    steps: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    produced: Mapping[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)

    @property
    def usage(self) -> Usage:
        """Sum over the steps."""
        return sum((Usage(**step["usage"]) for step in self.steps), Usage())
