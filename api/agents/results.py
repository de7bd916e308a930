"""What an agent or a client gives back: an answer with its sources, steps, cost and trace."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from inference import Usage
from workflows.errors import WorkflowError, WorkflowInputError
from workflows.events import Event

Status = Literal["completed", "failed", "cancelled", "interrupted"]


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that supports the answer; `text == source_text[start:end]`, in characters.

    `score` is the retriever's (higher is better; its scale is the retriever's own); `more` holds
    what the workflow says of it besides.
    """

    id: str
    title: str
    source: str
    start: int
    end: int
    text: str
    score: float
    document_id: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Citation:
        """From the object that a run prints."""
        known, more = _split(cls, record)
        return cls(**known, more=more)


@dataclass(frozen=True, slots=True)
class Step:
    """One execution of one node; `seconds` is wall time, `usage` its own calls only.

    A `superseded` step was run again later: it cost what it says, but had no effect. `more` holds
    what the run says of it besides, such as its ledger.
    """

    node: str
    kind: str
    task: str
    started_at: datetime
    seconds: float
    usage: Usage
    notes: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    superseded: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Step:
        """From the object that a run prints."""
        known, more = _split(cls, record)
        known["started_at"] = datetime.fromisoformat(known["started_at"])
        known["usage"] = usage_of(known["usage"])
        return cls(**known, more=more)


@dataclass(frozen=True, slots=True)
class Ask:
    """Something a run waits to be told: what its `interrupt` node shows to people.

    An answer must be one of `choices`, or valid under the JSON Schema `schema`, where there is one.
    """

    id: str
    node: str
    ask: Any = None
    choices: Sequence[Any] | None = None
    schema: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Ask:
        """From one of the `asks` of a run."""
        return cls(**_split(cls, record)[0])


@dataclass(frozen=True)
class AgentResult:
    """What a run gave, step by step, and what it cost.

    `answer` is the output of that name where it is a text; `outputs` holds all. `usage.seconds` is
    the run's wall time. `trace` holds the events of this call, but those about single tokens. A
    run that waits for a person is `interrupted` and has `asks`; one stopped by its budget is
    `interrupted` with an error. `ledger` is what each node did to spend that, where the run keeps
    one.
    """

    run_id: str
    workflow: str
    status: Status
    answer: str | None
    citations: tuple[Citation, ...]
    steps: tuple[Step, ...]
    usage: Usage
    outputs: Mapping[str, Any]
    error: Mapping[str, str] | None = None
    asks: tuple[Ask, ...] = ()
    ledger: Any = None
    trace: tuple[Event, ...] = field(default=(), repr=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The object that `ragwright run --json` prints."""
    continuation: Any = field(default=None, repr=False, compare=False)
    """What `resume` needs of a run in memory; not for others."""

    @classmethod
    def of(
        cls, record: Mapping[str, Any], trace: Sequence[Event] = (), continuation: Any = None
    ) -> AgentResult:
        """From the object that a run prints."""
        outputs = record["outputs"]
        answer = outputs.get("answer")
        return cls(
            run_id=record["run_id"],
            workflow=record["workflow"],
            status=record["status"],
            answer=answer if isinstance(answer, str) else None,
            citations=tuple(Citation.of(one) for one in _citations(outputs)),
            steps=tuple(Step.of(step) for step in record["steps"]),
            usage=usage_of(record["usage"]),
            outputs=outputs,
            error=record.get("error"),
            asks=tuple(Ask.of(ask) for ask in record.get("asks") or ()),
            ledger=record.get("ledger"),
            trace=tuple(trace),
            record=record,
            continuation=continuation,
        )

    @property
    def completed(self) -> bool:
        """True if the run went to its end."""
        return self.status == "completed"

    def raise_if_failed(self) -> AgentResult:
        """The result itself; raises RunFailed unless the run completed."""
        if not self.completed:
            raise RunFailed(self)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object, as `ragwright run --json` prints it."""
        return dict(self.record)

    def write_trace(self, file: str | Path) -> None:
        """Write the events as JSON lines, as `ragwright run --trace` does."""
        lines = (json.dumps(event.to_dict(), ensure_ascii=False) + "\n" for event in self.trace)
        Path(file).write_text("".join(lines), encoding="utf-8")


Events = Generator[Event | AgentResult, None, None]
"""Events of a run and last its result; `close()` stops the run."""

AsyncEvents = AsyncGenerator[Event | AgentResult, None]
"""Events of a run and last its result; `aclose()` stops the run."""


class RunFailed(WorkflowError):
    """A run that did not complete; `result` holds what it did until then, `code` why it ended."""

    def __init__(self, result: AgentResult) -> None:
        self.result = result
        error = result.error or _waiting(result)
        self.code = error["code"]
        super().__init__(f"run {result.run_id} is {result.status}: {error['message']}")


def answers_of(run_id: str, asks: Sequence[Ask], answers: Any) -> dict[str, Any]:
    """Answers by id, from a mapping, or from the answer to the only thing asked; None for none.

    Raises WorkflowInputError where one answer meets several questions, or none.
    """
    if answers is None or isinstance(answers, Mapping):
        return dict(answers or {})
    if len(asks) != 1:
        ids = ", ".join(ask.id for ask in asks)
        raise WorkflowInputError(
            f"run {run_id} asks {len(asks)} things; give a mapping from their ids"
            f"{f' ({ids})' if ids else ''} to answers"
        )
    return {asks[0].id: answers}


def usage_of(record: Mapping[str, Any]) -> Usage:
    """Usage from a plain object; what a later version counts besides is left out."""
    return Usage(**_split(Usage, record)[0])


def _waiting(result: AgentResult) -> dict[str, str]:
    asks = ", ".join(ask.id for ask in result.asks)
    return {
        "code": "waits_for_answers",
        "message": f"it waits for an answer to {asks or 'nothing it names'}; give it by resume()",
    }


def _citations(outputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those entries of the output `citations` that have the form of one."""
    given = outputs.get("citations")
    if not isinstance(given, list):
        return []
    needed = {"id", "title", "source", "start", "end", "text", "score"}
    return [one for one in given if isinstance(one, dict) and needed <= one.keys()]


def _split(cls: Any, record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a class that a record holds, and the rest."""
    names = {f.name for f in fields(cls)} - {"more"}
    known = {key: value for key, value in record.items() if key in names}
    return known, {key: value for key, value in record.items() if key not in names}
