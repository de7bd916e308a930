"""What a run tells while it runs: typed events, and the sinks that receive them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from inference import Usage


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; `type` is the name under which it stands in a trace."""

    type: ClassVar[str] = "event"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object for a trace line."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"type": self.type, **{k: v for k, v in facts.items() if v is not None}}


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run begins, or goes on after an interruption (`resumed`)."""

    type: ClassVar[str] = "run_started"
    run_id: str
    workflow: str
    inputs: Mapping[str, Any]
    seed: int
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class StepStarted(Event):
    """A node begins; `task` identifies this execution in the checkpoint.

    `started_at` is seconds since the epoch.
    """

    type: ClassVar[str] = "step_started"
    node: str
    kind: str
    task: str
    started_at: float = 0.0


@dataclass(frozen=True, slots=True)
class TextDelta(Event):
    """Text just produced by a generating node (only when a sink asks for it)."""

    type: ClassVar[str] = "text_delta"
    node: str
    text: str


@dataclass(frozen=True, slots=True)
class TokensProduced(Event):
    """Tokens that generation `call` of a step has just decoded: what a warm resume starts from.

    `call` counts the step's generations from 1, `at` the tokens that came before these;
    `request` is a fingerprint of what was asked, so that tokens go on only under the same.
    """

    type: ClassVar[str] = "tokens_produced"
    node: str
    task: str
    call: int
    at: int
    token_ids: tuple[int, ...]
    request: str = ""


@dataclass(frozen=True, slots=True)
class ModelCalled(Event):
    """One generation of a step ended: by whom, how, and what it cost.

    `engine` is the row of the engine table, `sampling` the parameters as the engine got them,
    `stats` an `inference.Stats` as a mapping. `seconds` is wall time, `started_at` is seconds
    since the epoch.
    """

    type: ClassVar[str] = "model_called"
    node: str
    task: str
    call: int
    engine: str
    model: str
    sampling: Mapping[str, Any]
    finish_reason: str
    started_at: float
    seconds: float
    usage: Usage
    stats: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {**Event.to_dict(self), "usage": self.usage.to_dict()}


@dataclass(frozen=True, slots=True)
class Retrieved(Event):
    """One search of a step ended; `hits` is the number of passages found for all its queries."""

    type: ClassVar[str] = "retrieved"
    node: str
    task: str
    retriever: str
    queries: int
    k: int
    hits: int
    started_at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Asked(Event):
    """The run waits for answers; each of `asks` has `id`, `node` and what `interrupt` shows."""

    type: ClassVar[str] = "asked"
    asks: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class StepFinished(Event):
    """A node ended: what it cost, what it noted, and the error if it failed.

    `started_at` is seconds since the epoch, `seconds` the node's wall time, `elapsed` the active
    time of the whole run up to here (interruptions excluded). `usage` is this step's own: the
    steps of a sub-workflow have records of their own, so that all steps add up to the run.
    `stats` is what its generations cost inside the engine (`workflows.ledger.costs_of`), empty
    where there were none.
    """

    type: ClassVar[str] = "step_finished"
    node: str
    kind: str
    task: str
    started_at: float
    seconds: float
    elapsed: float
    usage: Usage
    notes: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object; `error` is absent where the node succeeded."""
        record: dict[str, Any] = {
            "type": self.type,
            "node": self.node,
            "kind": self.kind,
            "task": self.task,
            "started_at": self.started_at,
            "seconds": self.seconds,
            "elapsed": self.elapsed,
            "usage": self.usage.to_dict(),
            "notes": dict(self.notes),
        }
        if self.stats:
            record["stats"] = dict(self.stats)
        if self.error is not None:
            record["error"] = dict(self.error)
        return record


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A run ended; `result` is the object that `ragwright run --json` prints."""

    type: ClassVar[str] = "run_finished"
    result: Mapping[str, Any]


Sink = Callable[[Event], None]
"""Receives every event of a run, in order, in the run's own thread; must be quick."""
