"""What earlier attempts at a run did, read back from its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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


def past_of(events: Iterable[Mapping[str, Any]]) -> Past:
    """What the lines of a journal (`Event.to_dict()`) say that earlier attempts did."""
    steps: list[Mapping[str, Any]] = []
    seconds = 0.0
    for event in events:
        if event["type"] == "step_finished":
            steps.append(step_record(event))
            seconds = event["elapsed"]
    return Past(steps, seconds)


def step_record(event: Mapping[str, Any]) -> dict[str, Any]:
    """A step_finished event as it stands in a result: ISO time, no event type."""
    started = datetime.fromtimestamp(event["started_at"], UTC).isoformat()
    kept = {k: v for k, v in event.items() if k not in ("type", "elapsed")}
    return {**kept, "started_at": started}
