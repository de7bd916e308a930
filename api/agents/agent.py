"""An agent: a workflow as an object, with typed inputs and outputs and its resources held open."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from api.agents.background import BackgroundLoop, Put
from api.agents.results import AgentResult, AsyncEvents, Events
from api.agents.runner import Choices, Runner
from inference import Engine, EngineConfig
from retrieval import Retriever
from workflows.errors import WorkflowInputError
from workflows.events import Event, Sink
from workflows.loading import Workflow, load_workflow

if TYPE_CHECKING:
    from typing import Self, Unpack

    from langchain_core.runnables import Runnable

CONCURRENCY = 8
"""Runs of a batch that are under way at once, where the caller names no number."""

Item = str | Mapping[str, Any]
"""Inputs of one run of a batch: a mapping, or the value of the first input alone."""


class AgentOptions(TypedDict, total=False):
    """What the constructor of every agent takes."""

    engine: str | EngineConfig | Engine | None
    model: str | None
    retriever: Retriever | str | Path | None
    docs: str | Path | None
    graph: Retriever | str | Path | None
    options: Mapping[str, Any] | None
    seed: int
    budget: Mapping[str, float] | None
    tenant: str
    sinks: Sequence[Sink]
    keep: bool


class Agent:
    """A workflow that can be called: `Agent.from_workflow("file.yaml").run(question="...")`.

    The constructor says what an agent is made of; `help` of a method says what its workflow takes.
    """

    workflow: ClassVar[str] = ""
    """Shipped name or file of the workflow that a subclass stands for."""

    def __init__(
        self,
        *,
        engine: str | EngineConfig | Engine | None = None,
        model: str | None = None,
        retriever: Retriever | str | Path | None = None,
        docs: str | Path | None = None,
        graph: Retriever | str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        budget: Mapping[str, float] | None = None,
        tenant: str = "",
        sinks: Sequence[Sink] = (),
        keep: bool = False,
    ) -> None:
        """Make an agent; nothing is opened yet.

        - `engine`: a name of the engine table ("native", "openai", "vllm"), an `EngineConfig`, or
          an open `Engine`, which stays yours to close. Left out, the workflow's own.
        - `model`: in place of the workflow's model: a name, a folder or a hub id.
        - `retriever`: the folder of an index, or an open `Retriever`, which stands in for every
          retriever of the workflow; or `docs`: a file or folder of documents, indexed on first use.
        - `graph`: a knowledge graph, for workflows that search one: triples, RDF or GraphML, the
          folder of a built graph, or an open `Retriever` over one.
        - `options`: inputs of the workflow that hold for every call that does not name them.
        - `seed`: the same seed and inputs give the same run again (on CPU).
        - `budget`: `tokens` (prompt plus completion), `seconds` (wall time), `retrievals`
          (queries), in place of the workflow's limits.
        - `tenant`: whose prefix caches the engine uses.
        - `sinks`: functions that receive every event, in the agent's own thread; to be quick.
        - `keep`: keep each run in a folder that `ragwright run --resume RUN_ID` can go on with.
          It takes resources by name. Without it a run lives in memory and leaves nothing behind.

        Engine, model and index are opened by the first call and shared by all others, from any
        thread; `close()`, or a `with` block, releases them.

        Errors: `WorkflowInputError`, `InferenceInputError` and `RetrievalInputError` for what
        cannot be used (nothing was run). A run that failed is a result with `status` and `error`,
        not an exception; `raise_if_failed()` makes it one.
        """
        if not self.workflow:
            raise WorkflowInputError(
                "Agent itself stands for no workflow; use Agent.from_workflow(FILE) or a class "
                "such as AutoRAG"
            )
        self.options = dict(options or {})
        self._workflow = load_workflow(self.workflow)
        choices = Choices(
            self.workflow, engine, model, retriever, docs, graph, seed, budget, tenant, sinks, keep
        )
        self._runner = Runner(self._workflow, choices)
        self._loop = BackgroundLoop(f"agent {self._workflow.spec.name}")
        self._end = weakref.finalize(self, _shut, self._loop, self._runner)

    @classmethod
    def from_workflow(cls, workflow: str | Path, **options: Unpack[AgentOptions]) -> Agent:
        """An agent of a workflow file, or of a shipped name; `options` as the constructor's.

        Raises InvalidWorkflow with every fault of the file.
        """
        kind = type(Path(workflow).stem, (Agent,), {"workflow": str(workflow)})
        agent: Agent = kind(**options)
        return agent

    @property
    def spec(self) -> Workflow:
        """The checked workflow behind the agent."""
        return self._workflow

    def run(self, *args: Any, **inputs: Any) -> AgentResult:
        """Run to the end and return the result; works where an event loop is running too."""
        return self._loop.run(self._runner.run(self._inputs(args, inputs)))

    async def arun(self, *args: Any, **inputs: Any) -> AgentResult:
        """Run to the end; cancelling the await stops the run, decoding included."""
        return await self._loop.arun(self._runner.run(self._inputs(args, inputs)))

    def stream(self, *args: Any, **inputs: Any) -> Events:
        """Events as they happen, text included, and last the result.

        Closing the iterator stops the run, decoding included.
        """
        return self._loop.stream(self._streamed(self._inputs(args, inputs)))

    def astream(self, *args: Any, **inputs: Any) -> AsyncEvents:
        """Events as they happen, text included, and last the result.

        Closing the iterator stops the run, decoding included.
        """
        return self._loop.astream(self._streamed(self._inputs(args, inputs)))

    def batch(self, items: Iterable[Item], *, concurrency: int = CONCURRENCY) -> list[AgentResult]:
        """Results in the order of the items, `concurrency` runs at a time.

        An item is a mapping of inputs, or the value of the first input. Items do not touch each
        other: one whose inputs are bad, or whose run fails, is a result with that error.
        """
        return self._loop.run(self._runner.batch(self._items(items), concurrency))

    async def abatch(
        self, items: Iterable[Item], *, concurrency: int = CONCURRENCY
    ) -> list[AgentResult]:
        """As `batch`; cancelling the await stops every run of it."""
        return await self._loop.arun(self._runner.batch(self._items(items), concurrency))

    def resume(
        self,
        result: AgentResult,
        answers: Any = None,
        *,
        budget: Mapping[str, float] | None = None,
    ) -> AgentResult:
        """Go on with an interrupted run: with answers to its `asks`, or under a higher budget.

        `answers` maps ids of `result.asks` to answers; anything else answers the only one. Raises
        BadAnswer, with the run untouched, for one that the question does not allow.
        """
        return self._loop.run(self._runner.resume(result, answers, budget))

    async def aresume(
        self,
        result: AgentResult,
        answers: Any = None,
        *,
        budget: Mapping[str, float] | None = None,
    ) -> AgentResult:
        """As `resume`, awaited."""
        return await self._loop.arun(self._runner.resume(result, answers, budget))

    def as_node(
        self, reads: Mapping[str, str] | None = None, writes: Mapping[str, str] | None = None
    ) -> Runnable[Any, dict[str, Any]]:
        """A node for a LangGraph graph of your own: `graph.add_node("rag", agent.as_node())`.

        `reads` maps inputs of the workflow to keys of the graph's state (left out: those inputs
        that the state has under the same name), `writes` outputs to keys (left out: all, under
        their own names). Raises RunFailed in the graph where the run does not complete.
        """
        from api.agents.node import node_of

        return node_of(self, reads, writes)

    def close(self) -> None:
        """Stop what runs, and release engine and index; harmless when repeated."""
        self._end()

    def __enter__(self) -> Self:
        """The agent itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Class and workflow."""
        return f"<{type(self).__name__} {self._workflow.spec.name}>"

    def _inputs(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of one run, checked; the first may be given by position."""
        spec = self._workflow.spec
        named = dict(zip(spec.inputs, args[:1], strict=False))
        if len(args) > len(named) or named.keys() & inputs.keys():
            raise WorkflowInputError(
                f"workflow {spec.name!r} takes its first input by position or by name, the others "
                f"by name: {', '.join(spec.inputs) or 'it has none'}"
            )
        return self._workflow.check_inputs({**self.options, **named, **inputs})

    def _items(self, items: Iterable[Item]) -> list[dict[str, Any] | WorkflowInputError]:
        """Checked inputs of each item, or what is wrong with them."""
        if isinstance(items, str | Mapping):
            raise WorkflowInputError("a batch is a list of items; put this one in a list")
        checked: list[dict[str, Any] | WorkflowInputError] = []
        for item in items:
            try:
                named = item if isinstance(item, Mapping) else {}
                checked.append(self._inputs(() if isinstance(item, Mapping) else (item,), named))
            except WorkflowInputError as error:
                checked.append(error)
        return checked

    def _streamed(self, inputs: dict[str, Any]) -> Any:
        runner = self._runner

        async def work(put: Put[Event | AgentResult]) -> None:
            put(await runner.run(inputs, listener=put))

        return work


def _shut(loop: BackgroundLoop, runner: Runner) -> None:
    """Also called where an agent is collected, which may be in the loop's own thread."""
    if loop.is_this_thread:
        threading.Thread(target=_shut, args=(loop, runner)).start()
        return
    loop.close()
    runner.close()
