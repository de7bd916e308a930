"""What a server tells about runs, as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from api.agents.results import AgentResult, Ask, usage_of
from workflows import events
from workflows.events import Event

State = Literal["queued", "running", "waiting", "interrupted", "completed", "failed", "cancelled"]

AT_REST = frozenset({"waiting", "interrupted", "completed", "failed", "cancelled"})
"""States in which nothing happens until somebody asks for it."""

_STATUS = {"waiting": "interrupted"}
"""Where the status of a result has another name than the state of its run."""


@dataclass(frozen=True)
class RunRecord:
    """A run of a server; times are seconds since the epoch.

    `asks` is what a waiting run wants to know. `record` is what the server said.
    """

    id: str
    workflow: str
    state: State
    inputs: Mapping[str, Any]
    priority: str
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int
    max_attempts: int
    cancel_requested: bool
    asks: tuple[Ask, ...] = ()
    error: Mapping[str, str] | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> RunRecord:
        """From the object that the server sends."""
        names = {f.name for f in fields(cls)} - {"asks", "record"}
        known = {name: record[name] for name in names if name in record}
        asks = tuple(Ask.of(ask) for ask in record.get("asks") or ())
        return cls(**known, asks=asks, record=record)

    @property
    def at_rest(self) -> bool:
        """True while nothing happens unless somebody asks for it."""
        return self.state in AT_REST

    def result(self, trace: Sequence[Event] = ()) -> AgentResult:
        """What the run gave so far; without any result, one that says how it ended."""
        said: Mapping[str, Any] = self.record.get("result") or {
            "run_id": self.id,
            "workflow": self.workflow,
            "outputs": {},
            "steps": [],
            "usage": {},
        }
        asks = self.record.get("asks") or ()
        status = _STATUS.get(self.state, self.state)
        error = self.error or said.get("error")
        if error is None and self.state == "cancelled":
            error = {"code": "cancelled", "message": "cancelled before it began"}
        return AgentResult.of({**said, "status": status, "asks": asks, "error": error}, trace)


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """The run has another state on the server; `error` says why, where it failed."""

    type: ClassVar[str] = "job"
    state: State
    error: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class OtherEvent(Event):
    """An event of a kind that this client does not know, as the server told it."""

    record: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As the server told it."""
        return dict(self.record)


_KINDS: dict[str, type[Event]] = {
    kind.type: kind
    for kind in (*vars(events).values(), StateChanged)
    if isinstance(kind, type) and issubclass(kind, Event)
}


def event_of(record: Mapping[str, Any]) -> Event:
    """The event that a server told."""
    kind = _KINDS.get(record.get("type", ""))
    if kind is None:
        return OtherEvent(record)
    names = {f.name for f in fields(kind)}
    facts = {name: value for name, value in record.items() if name in names}
    if "usage" in facts:
        facts["usage"] = usage_of(facts["usage"])
    for name in ("token_ids", "asks"):
        if name in facts:
            facts[name] = tuple(facts[name])
    try:
        return kind(**facts)
    except TypeError:  # another version's event, with less in it
        return OtherEvent(record)
