"""Runs of one workflow, in memory or kept in folders, over resources that are opened once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from api import telemetry
from api.agents.results import AgentResult, answers_of
from inference import Engine, EngineConfig
from retrieval import Retriever
from workflows.errors import WorkflowInputError
from workflows.events import Event, Sink, TextDelta, TokensProduced
from workflows.loading import Workflow
from workflows.resources import Overrides, ResourcePool, Resources, retrieves, uses_graph

Listener = Callable[[Event | AgentResult], None]


@dataclass(frozen=True)
class Choices:
    """What an agent was made with; see `Agent`."""

    source: str
    engine: str | EngineConfig | Engine | None
    model: str | None
    retriever: Retriever | str | Path | None
    docs: str | Path | None
    graph: Retriever | str | Path | None
    seed: int
    budget: Mapping[str, float] | None
    tenant: str
    sinks: Sequence[Sink]
    keep: bool


@dataclass
class Continuation:
    """What a run in memory needs to go on: its inputs, checkpoints and journal."""

    run_id: str
    inputs: Mapping[str, Any]
    journal: list[dict[str, Any]] = field(default_factory=list)
    saver: Any = field(default_factory=lambda: _memory())

    def note(self, event: Event) -> None:
        """Write an event down."""
        if not isinstance(event, TextDelta):
            self.journal.append(event.to_dict())


class Runner:
    """Opens what a workflow needs once, and runs it; every method belongs on the agent's loop."""

    def __init__(self, workflow: Workflow, choices: Choices) -> None:
        self.workflow = workflow
        self.choices = choices
        self._pool = ResourcePool()
        self._opening = asyncio.Lock()
        self._resources: Resources | None = None
        self._check()

    def _check(self) -> None:
        """Refuse what can be refused before anything is opened."""
        choices, name = self.choices, self.workflow.spec.name
        if isinstance(choices.engine, EngineConfig | Engine) and choices.model is not None:
            raise WorkflowInputError(
                f"model {choices.model!r} and an engine that names its own; give one of them"
            )
        named = choices.engine is None or isinstance(choices.engine, str)
        live = any(isinstance(one, Retriever) for one in (choices.retriever, choices.graph))
        if choices.keep and (not named or live):
            raise WorkflowInputError(
                "a kept run goes on in another process, where an open engine or retriever is not; "
                "name them, or leave keep out"
            )
        given = choices.docs if choices.retriever is None else choices.retriever
        if choices.docs is not None and choices.retriever is not None:
            raise WorkflowInputError("docs and retriever name two sources; give one of them")
        if retrieves(self.workflow) and given is None:
            raise WorkflowInputError(
                f"workflow {name!r} searches documents; give docs=PATH, or retriever= an index "
                "folder or an open retriever"
            )
        if not retrieves(self.workflow) and given is not None:
            raise WorkflowInputError(f"workflow {name!r} searches no documents; leave {given} out")
        if uses_graph(self.workflow) and choices.graph is None:
            raise WorkflowInputError(
                f"workflow {name!r} searches a graph; give graph= its files, the folder of a built "
                "one, or an open retriever over one"
            )
        if not uses_graph(self.workflow) and choices.graph is not None:
            raise WorkflowInputError(f"workflow {name!r} uses no graph; leave {choices.graph} out")

    async def open(self) -> Resources:
        """The resources, opened by whoever comes first."""
        async with self._opening:
            if self._resources is None:
                resources = await asyncio.to_thread(self._configure)
                await resources.open()
                self._resources = resources
        return self._resources

    def _configure(self) -> Resources:
        choices, index, graph = self.choices, None, None
        retriever = choices.retriever if isinstance(choices.retriever, Retriever) else None
        walker = choices.graph if isinstance(choices.graph, Retriever) else None
        if choices.docs is not None:
            from retrieval.cache import index_for_docs

            index = index_for_docs(choices.docs)
        elif isinstance(choices.retriever, str | Path):
            index = Path(choices.retriever)
        if isinstance(choices.graph, str | Path):
            from graphs.cache import graph_for

            graph = graph_for(choices.graph)
        return Resources(
            self.workflow.spec,
            self._pool,
            index=index,
            graph=graph,
            overrides=Overrides(choices.engine, choices.model, retriever, walker),
        )

    async def run(self, inputs: Mapping[str, Any], listener: Listener | None = None) -> AgentResult:
        """One run from its beginning; text is streamed where somebody listens."""
        _outside_of_any_graph()
        if self.choices.keep:
            return await self._kept(inputs, listener)
        return await self._attempt(Continuation(secrets.token_hex(6), inputs), {}, listener)

    async def resume(
        self,
        result: AgentResult,
        answers: Any,
        budget: Mapping[str, float] | None,
    ) -> AgentResult:
        """A run goes on where it stopped."""
        _outside_of_any_graph()
        if result.completed:
            raise WorkflowInputError(
                f"run {result.run_id} is completed; there is nothing to resume"
            )
        given = answers_of(result.run_id, result.asks, answers)
        if self.choices.keep:
            return await self._kept_again(result, given, budget)
        past = result.continuation
        if not isinstance(past, Continuation):
            raise WorkflowInputError(
                f"run {result.run_id} was not made by an agent in memory; resume it where it was "
                "made, or a kept one with `ragwright run --resume`"
            )
        return await self._attempt(past, budget or {}, None, given)

    async def _attempt(
        self,
        run: Continuation,
        budget: Mapping[str, float],
        listener: Listener | None,
        answers: Mapping[str, Any] | None = None,
    ) -> AgentResult:
        """One attempt at a run in memory."""
        from workflows.past import past_of
        from workflows.runtime import RunOptions, execute
        from workflows.scope import budget_of

        resources = await self.open()
        limits: dict[str, Any] = {**(self.choices.budget or {}), **budget}
        with self._heard(listener) as (trace, sinks):
            options = RunOptions(
                run.run_id,
                seed=self.choices.seed,
                budget=replace(budget_of(self.workflow, run.inputs), **limits),
                sinks=(run.note, *sinks),
                stream_text=listener is not None,
                past=past_of(run.journal) if run.journal else None,
                tenant=self.choices.tenant,
                answers=answers or {},
            )
            result = await execute(self.workflow, run.inputs, resources, options, run.saver)
        again = None if result.status == "completed" else run
        return AgentResult.of(result.to_dict(), trace, again)

    async def _kept(self, inputs: Mapping[str, Any], listener: Listener | None) -> AgentResult:
        """A run in a folder of its own, over the same resources."""
        from workflows.runs import RunOrder, start_run

        resources, choices = await self.open(), self.choices
        assert choices.engine is None or isinstance(choices.engine, str), "checked when made"
        order = RunOrder(
            choices.source,
            inputs=inputs,
            index=resources.index,
            graph=resources.graph,
            engine=choices.engine,
            model=choices.model,
            seed=choices.seed,
            budget=choices.budget,
            tenant=choices.tenant,
        )
        with self._heard(listener) as (trace, sinks):
            result = await start_run(order, sinks, listener is not None, pool=self._pool)
        return AgentResult.of(result.to_dict(), trace)

    async def _kept_again(
        self, result: AgentResult, answers: Mapping[str, Any], budget: Mapping[str, float] | None
    ) -> AgentResult:
        from workflows.runs import resume_run

        with self._heard(None) as (trace, sinks):
            again = await resume_run(result.run_id, budget, sinks, answers=answers, pool=self._pool)
        return AgentResult.of(again.to_dict(), trace)

    @contextmanager
    def _heard(self, listener: Listener | None) -> Iterator[tuple[list[Event], tuple[Sink, ...]]]:
        """A trace to be filled, and everybody who hears of an attempt."""
        trace: list[Event] = []

        def note(event: Event) -> None:
            if not isinstance(event, TextDelta | TokensProduced):
                trace.append(event)

        listening = () if listener is None else (listener,)
        with telemetry.traced() as spans:
            yield trace, (note, spans, *self.choices.sinks, *listening)

    async def batch(
        self, items: Sequence[Mapping[str, Any] | WorkflowInputError], concurrency: int
    ) -> list[AgentResult]:
        """Results in the order of the items."""
        places = asyncio.Semaphore(concurrency)

        async def one(item: Mapping[str, Any] | WorkflowInputError) -> AgentResult:
            if isinstance(item, WorkflowInputError):
                return _refused(self.workflow, item)
            async with places:
                return await self.run(item)

        return list(await asyncio.gather(*map(one, items)))

    def close(self) -> None:
        """Close what was opened here; what was given open stays open."""
        self._pool.close()


def _refused(workflow: Workflow, error: WorkflowInputError) -> AgentResult:
    """The result of a run that did not begin."""
    return AgentResult.of(
        {
            "run_id": "",
            "workflow": workflow.spec.name,
            "status": "failed",
            "outputs": dict.fromkeys(workflow.spec.outputs),
            "steps": [],
            "usage": {},
            "error": {"code": error.code, "message": str(error)},
        }
    )


def _memory() -> Any:
    """Checkpoints that end with the process."""
    from langgraph.checkpoint.memory import InMemorySaver

    from workflows.checkpoints import strict_serializer

    return InMemorySaver(serde=strict_serializer())


def _outside_of_any_graph() -> None:
    """Forget the LangGraph run this was called from, whose checkpoints are not ours to write."""
    from langchain_core.runnables.config import var_child_runnable_config

    var_child_runnable_config.set(None)
