"""What earlier attempts at a run did, read back from its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from inference import Usage
from workflows.ledger import costs_of

Generation = tuple[str, int]
"""A step's task and which of its generations."""


@dataclass(frozen=True)
class Past:
    """What earlier attempts of a resumed run did: their step records and active seconds.

    `produced` holds the tokens of generations whose step may run again, by task and call,
    `requests` what they were asked, as a fingerprint; `asked` are ids of questions put before. A
    step that was killed has a record too, with what the journal knows: the prompt of a generation
    that was cut off is not counted.
    """

    steps: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    produced: Mapping[Generation, tuple[int, ...]] = field(default_factory=dict)
    requests: Mapping[Generation, str] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    @property
    def usage(self) -> Usage:
        """Sum over the steps."""
        return sum((Usage(**step["usage"]) for step in self.steps), Usage())


def past_of(events: Iterable[Mapping[str, Any]]) -> Past:
    """What the lines of a journal (`Event.to_dict()`) say that earlier attempts did."""
    reader = _Reader()
    for event in events:
        reader.take(event)
    reader.close()
    produced = {key: tuple(tokens) for key, tokens in reader.produced.items()}
    return Past(reader.steps, reader.seconds, produced, reader.requests, frozenset(reader.asked))


def step_record(event: Mapping[str, Any]) -> dict[str, Any]:
    """A step_finished event as it stands in a result: ISO time, no event type."""
    started = datetime.fromtimestamp(event["started_at"], UTC).isoformat()
    kept = {k: v for k, v in event.items() if k not in ("type", "elapsed")}
    return {**kept, "started_at": started}


@dataclass
class _Open:
    """A step that has begun, with what it spent so far."""

    event: Mapping[str, Any]
    called: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    decoded: dict[int, int] = field(default_factory=dict)
    retrievals: int = 0
    ended_at: float = 0.0


class _Reader:
    def __init__(self) -> None:
        self.steps: list[Mapping[str, Any]] = []
        self.seconds = 0.0
        self.produced: dict[Generation, list[int]] = {}
        self.requests: dict[Generation, str] = {}
        self.asked: set[str] = set()
        self._open: dict[str, _Open] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Read one line."""
        kind = event["type"]
        if kind == "run_started":
            self.close()
        elif kind == "step_started":
            self._open[event["task"]] = _Open(event)
        elif kind == "step_finished":
            self._finish(event)
        elif kind == "asked":
            self.asked.update(ask["id"] for ask in event["asks"])
        elif kind == "tokens_produced":
            self._produce(event)
        elif kind == "model_called" and (step := self._open.get(event["task"])):
            step.called[event["call"]] = event
            step.ended_at = event["started_at"] + event["seconds"]
        elif kind == "retrieved" and (step := self._open.get(event["task"])):
            step.retrievals += event["queries"]
            step.ended_at = event["started_at"] + event["seconds"]

    def close(self) -> None:
        """An attempt is over: what it began and did not finish was killed."""
        for step in self._open.values():
            if step.called or step.decoded or step.retrievals:
                self.steps.append(_killed(step))
        self._open = {}

    def _finish(self, event: Mapping[str, Any]) -> None:
        self._open.pop(event["task"], None)
        self.steps.append(step_record(event))
        self.seconds = event["elapsed"]
        error = event.get("error")
        if error is not None and error["code"] != "cancelled":
            # What failed is tried anew; what was cancelled, or whose checkpoint was not written
            # any more, goes on from its tokens.
            for key in [key for key in self.produced if key[0] == event["task"]]:
                del self.produced[key]

    def _produce(self, event: Mapping[str, Any]) -> None:
        key = (event["task"], event["call"])
        tokens = self.produced.setdefault(key, [])
        del tokens[event["at"] :]
        tokens.extend(event["token_ids"])
        self.requests[key] = event.get("request", "")
        if (step := self._open.get(event["task"])) is not None:
            decoded = step.decoded.get(event["call"], 0)
            step.decoded[event["call"]] = decoded + len(event["token_ids"])


def _killed(step: _Open) -> dict[str, Any]:
    """The record of a step that did not come to its end."""
    usage = sum((Usage(**call["usage"]) for call in step.called.values()), Usage())
    for call, tokens in step.decoded.items():
        if call not in step.called:
            usage += Usage(completion_tokens=tokens, model_calls=1)
    began = step.event["started_at"]
    record = {
        "node": step.event["node"],
        "kind": step.event["kind"],
        "task": step.event["task"],
        "started_at": datetime.fromtimestamp(began, UTC).isoformat(),
        "seconds": max(step.ended_at - began, 0.0),
        "usage": (usage + Usage(retrievals=step.retrievals)).to_dict(),
        "notes": {},
        "superseded": True,
        "error": {"code": "killed", "message": "the process ended before this step did"},
    }
    if step.called:
        record["stats"] = costs_of(call["stats"] for call in step.called.values())
    return record
