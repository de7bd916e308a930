"""Runs a workflow to its end, to its budget, or to an error, and says what happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphRecursionError, InvalidUpdateError
from langgraph.types import Command, Interrupt

from inference import Budget, InferenceError
from retrieval import RetrievalError
from workflows.answers import check_answers
from workflows.checkpoints import INTERRUPT
from workflows.compiler import compile_graph, initial_state
from workflows.errors import WorkflowError
from workflows.events import Asked, Event, RunFinished, RunStarted, Sink, StepFinished
from workflows.expressions import Template
from workflows.keeping import Fenced, NotKept
from workflows.ledger import ledger_of
from workflows.loading import Workflow
from workflows.meter import BudgetExhausted, Meter
from workflows.past import Past, step_record
from workflows.resources import Resources
from workflows.scope import Scope, budget_of


class RunStatus(StrEnum):
    """How a run stands."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Stopped by its budget with a partial result, or waiting for an answer; it can be resumed."""


@dataclass(frozen=True)
class RunResult:
    """What a run produced, step by step, and what it cost (`workflows.ledger.ledger_of`)."""

    run_id: str
    workflow: str
    status: RunStatus
    outputs: dict[str, Any]
    steps: list[dict[str, Any]]
    usage: dict[str, int | float]
    error: dict[str, str] | None = None
    ledger: dict[str, Any] = field(default_factory=dict)
    asks: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The object that `ragwright run --json` prints; `asks` where it waits for answers."""
        return {
            "run_id": self.run_id,
            "workflow": self.workflow,
            "status": self.status.value,
            "outputs": self.outputs,
            "steps": self.steps,
            "usage": self.usage,
            "error": self.error,
            "ledger": self.ledger,
            **({"asks": self.asks} if self.asks else {}),
        }


@dataclass
class RunOptions:
    """How to run: identity, randomness, limits, listeners."""

    run_id: str
    seed: int = 0
    budget: Budget | None = None
    sinks: Sequence[Sink] = ()
    stream_text: bool = False
    past: Past | None = None
    tenant: str = ""
    journalled: bool = False
    answers: Mapping[str, Any] = field(default_factory=dict)


async def execute(
    workflow: Workflow,
    inputs: Mapping[str, Any],
    resources: Resources,
    options: RunOptions,
    saver: BaseCheckpointSaver[Any] | None = None,
) -> RunResult:
    """Run a workflow; a failing run is a result with an error, not an exception.

    With a saver every finished superstep is on disk before the next begins; `options.past` says
    that the run goes on from there. Raises BadAnswer, with nothing done, for `options.answers`
    that cannot be taken.
    """
    run = _Run(workflow, inputs, resources, options, saver)
    start = await run.beginning()
    status, error = RunStatus.COMPLETED, None
    state: Mapping[str, Any] = {}
    try:
        state = await run.to_the_end(start)
        if run.asks:
            status = RunStatus.INTERRUPTED
    except BudgetExhausted as caught:
        status, error = RunStatus.INTERRUPTED, _error(caught)
    except asyncio.CancelledError:
        status, error = RunStatus.CANCELLED, {"code": "cancelled", "message": "cancelled"}
    except GraphRecursionError:
        limit = workflow.spec.limits.steps
        message = f"the graph did not end within {limit} steps; raise limits.steps or mend its loop"
        status, error = RunStatus.FAILED, {"code": "step_limit", "message": message}
    except (Fenced, NotKept):
        raise  # a result that is not kept, or another's to give, is no result
    except (WorkflowError, InferenceError, RetrievalError, InvalidUpdateError) as caught:
        status, error = RunStatus.FAILED, _error(caught)
    return run.finish(status, state or run.scope.last_state, error)


async def stream(
    workflow: Workflow,
    inputs: Mapping[str, Any],
    resources: Resources,
    options: RunOptions,
    saver: BaseCheckpointSaver[Any] | None = None,
) -> AsyncIterator[Event]:
    """The events of a run as they happen; the last one is RunFinished. Closing it cancels."""
    queue: asyncio.Queue[Event] = asyncio.Queue()
    options.sinks = (*options.sinks, queue.put_nowait)
    task = asyncio.ensure_future(execute(workflow, inputs, resources, options, saver))
    try:
        while True:
            getter = asyncio.ensure_future(queue.get())
            await asyncio.wait({getter, task}, return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                getter.cancel()
                task.result()
                return
            event = getter.result()
            yield event
            if isinstance(event, RunFinished):
                return
    finally:
        task.cancel()
        await asyncio.wait({task})


class _Run:
    def __init__(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any],
        resources: Resources,
        options: RunOptions,
        saver: BaseCheckpointSaver[Any] | None,
    ) -> None:
        self.workflow = workflow
        self.options = options
        past = options.past or Past()
        self.past = past
        self.steps: list[StepFinished] = []
        budget = options.budget or budget_of(workflow, inputs)
        self.meter = Meter(budget, spent=past.usage, spent_seconds=past.seconds)
        self.scope = Scope(
            workflow,
            inputs,
            resources,
            self.meter,
            seed=options.seed,
            emit=self.emit,
            stream_text=options.stream_text,
            tenant=options.tenant,
            journalled=options.journalled,
            past=past,
        )
        self.asks: list[dict[str, Any]] = []
        self.durable = saver is not None
        self.graph = compile_graph(self.scope).compile(checkpointer=saver)
        self.config: Any = {
            "configurable": {"thread_id": options.run_id},
            "recursion_limit": workflow.spec.limits.steps,
        }

    def emit(self, event: Event) -> None:
        if isinstance(event, StepFinished):
            self.steps.append(event)
        for sink in self.options.sinks:
            sink(event)

    async def beginning(self) -> Any:
        """What the graph is to begin with; None to go on with the newest checkpoint."""
        waiting: list[dict[str, Any]] = []
        going_on = False
        if self.options.past is not None and self.durable:
            snapshot = await self.graph.aget_state(self.config)
            going_on = bool(snapshot.values)
            waiting = [_ask(one) for one in snapshot.interrupts]
        answers = check_answers(waiting, self.options.answers, earlier=self.past.asked)
        if answers:
            return Command(resume=answers)
        return None if going_on else initial_state(self.scope)

    async def to_the_end(self, start: Any) -> Mapping[str, Any]:
        """The state in which the graph ends, or rests because it asks something."""
        self.emit(
            RunStarted(
                self.options.run_id,
                self.workflow.spec.name,
                self.scope.inputs,
                self.options.seed,
                self.options.past is not None,
            )
        )
        final: dict[str, Any] = await self.graph.ainvoke(
            start, self.config, durability="sync" if self.durable else None
        )
        # Parallel nodes ask in the order in which they get there; the same run asks alike.
        asks = [_ask(one) for one in final.pop(INTERRUPT, ())]
        self.asks = sorted(asks, key=lambda ask: str(ask["node"]))
        if self.asks:
            self.emit(Asked(tuple(self.asks)))
        return final

    def finish(
        self, status: RunStatus, state: Mapping[str, Any], error: dict[str, str] | None
    ) -> RunResult:
        names = {"state": state, "inputs": self.scope.inputs}
        complete = status is RunStatus.COMPLETED
        outputs: dict[str, Any] = {}
        for name, value in self.workflow.spec.outputs.items():
            try:
                outputs[name] = Template.compile(value).resolve(names)
            except WorkflowError as caught:
                outputs[name] = None
                if complete:
                    status, error = RunStatus.FAILED, _error(caught)
        usage = self.meter.usage.to_dict() | {"seconds": round(self.meter.elapsed, 6)}
        steps = [*self.past.steps, *(step_record(s.to_dict()) for s in self.steps)]
        result = RunResult(
            self.options.run_id,
            self.workflow.spec.name,
            status,
            outputs,
            mark_superseded(steps),
            usage,
            error,
            ledger_of(steps, usage["seconds"]),
            self.asks,
        )
        self.emit(RunFinished(result.to_dict()))
        return result


def _ask(waiting: Interrupt) -> dict[str, Any]:
    return {"id": waiting.id, **waiting.value}


def mark_superseded(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mark steps that were run again (a retry, or after a kill): spent, but without effect."""
    last = {step["task"]: position for position, step in enumerate(steps)}
    return [
        dict(step) if last[step["task"]] == position else {**step, "superseded": True}
        for position, step in enumerate(steps)
    ]


def _error(error: Exception) -> dict[str, str]:
    return {"code": getattr(error, "code", "failed"), "message": str(error)}
