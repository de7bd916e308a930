"""Runs of one workflow, in memory or kept in folders, over resources that are opened once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.agents.results import AgentResult
from inference import Engine, EngineConfig
from retrieval import Retriever
from workflows.errors import WorkflowInputError
from workflows.events import Event, Sink, TextDelta, TokensProduced
from workflows.loading import Workflow
from workflows.resources import Overrides, ResourcePool, Resources, retrieves

Listener = Callable[[Event | AgentResult], None]


@dataclass(frozen=True)
class Choices:
    """What an agent was made with; see `Agent`."""

    source: str
    engine: str | EngineConfig | Engine | None
    model: str | None
    retriever: Retriever | str | Path | None
    docs: Path | None
    graph: Path | None
    seed: int
    budget: Mapping[str, float] | None
    tenant: str
    sinks: tuple[Sink, ...]
    keep: bool


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
        if choices.graph is not None:
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
        choices, index = self.choices, None
        retriever = choices.retriever if isinstance(choices.retriever, Retriever) else None
        if choices.docs is not None:
            from retrieval.cache import index_for_docs

            index = index_for_docs(choices.docs)
        elif isinstance(choices.retriever, str | Path):
            index = Path(choices.retriever)
        overrides = Overrides(choices.engine, choices.model, retriever)
        return Resources(self.workflow.spec, self._pool, index=index, overrides=overrides)

    async def run(self, inputs: Mapping[str, Any], listener: Listener | None = None) -> AgentResult:
        """One run from its beginning; text is streamed where somebody listens."""
        from workflows.runtime import RunOptions, execute

        _outside_of_any_graph()
        resources = await self.open()
        trace: list[Event] = []

        def note(event: Event) -> None:
            if not isinstance(event, TextDelta | TokensProduced):
                trace.append(event)

        listening = () if listener is None else (listener,)
        options = RunOptions(
            secrets.token_hex(6),
            seed=self.choices.seed,
            sinks=(note, *self.choices.sinks, *listening),
            stream_text=listener is not None,
        )
        result = await execute(self.workflow, inputs, resources, options)
        return AgentResult.of(result.to_dict(), trace)

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

    async def resume(
        self,
        result: AgentResult,
        answers: Mapping[str, Any] | str | None,
        budget: Mapping[str, float] | None,
    ) -> AgentResult:
        raise NotImplementedError

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


def _outside_of_any_graph() -> None:
    """Forget the LangGraph run this was called from, whose checkpoints are not ours to write."""
    from langchain_core.runnables.config import var_child_runnable_config

    var_child_runnable_config.set(None)
