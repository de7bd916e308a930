"""What a node sees of its run: engine, retriever, ledger, under the run's budget."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inference import Capability, Engine, Message, Output, Request, SamplingParams, Usage
from retrieval import Hit
from workflows.events import TextDelta

if TYPE_CHECKING:
    from workflows.scope import Scope

DEFAULT_MAX_TOKENS = 256


class StepContext:
    """One execution of one node; implements `workflows.nodes.base.NodeContext`."""

    __slots__ = ("calls", "node", "notes", "sampling", "scope", "task", "usage")

    def __init__(self, scope: Scope, node: str, task: str, sampling: Mapping[str, Any]) -> None:
        self.scope = scope
        self.node = node
        self.task = task
        self.sampling = sampling
        self.usage = Usage()
        self.notes: dict[str, Any] = {}
        self.calls = 0

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The inputs of the workflow."""
        return self.scope.inputs

    def note(self, **facts: Any) -> None:
        """Add facts to the step's record in the trace."""
        self.notes.update(facts)

    async def generate(
        self,
        prompt: Sequence[Message] | str,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Output:
        """One generation, cut to what the run's budget leaves.

        Under a grammar the node's own stop strings are left out, and the trace says so: the
        grammar ends the answer. Raises BudgetExhausted when the prompt alone is more than what
        is left, and RequestFailed when the engine could not finish the answer.
        """
        node = self.scope.spec.nodes[self.node]
        engine = await self.scope.resources.engine(node.engine)
        spec = node.grammar
        if spec is not None and stop:
            self.note(stop_replaced_by_grammar=list(stop))
            stop = ()
        params = self._params(max_tokens, stop)
        self.calls += 1
        request = Request(
            prompt=prompt if isinstance(prompt, str) else None,
            messages=None if isinstance(prompt, str) else list(prompt),
            sampling=params,
            seconds=self._seconds_left(),
            grammar=None if spec is None else spec.build(),
            adapters=node.adapters,
            kv=node.policy(),
            tenant=self.scope.tenant,
        )
        if self.scope.meter.tokens_left() is not None:
            room = self.scope.meter.require_tokens(engine.count_tokens(request))
            if room is not None and room < params.max_tokens:
                request = replace(request, sampling=replace(params, max_tokens=room))
                self.note(max_tokens_cut_by_budget=room)
        output = await self._run(engine, request)
        self._charge(output.usage)
        if "kv" in output.notes:
            self.note(kv=output.notes["kv"])
        output.raise_if_failed()
        return output

    def _seconds_left(self) -> float | None:
        left = self.scope.meter.seconds_left()
        if left is not None and left <= 0:
            self.scope.meter.require_seconds()
        return left

    def _params(self, max_tokens: int | None, stop: Sequence[str]) -> SamplingParams:
        given = {name: value for name, value in self.sampling.items() if value is not None}
        given.setdefault("max_tokens", max_tokens or DEFAULT_MAX_TOKENS)
        given["stop"] = (*given.get("stop", ()), *stop)
        given.setdefault("seed", self._seed())
        return SamplingParams(**given)

    def _seed(self) -> int:
        """A seed of its own for every generation of the run, the same when the run is replayed."""
        origin = f"{self.scope.seed}/{self.scope.path}{self.task}/{self.calls}"
        return int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8], "big")

    async def _run(self, engine: Engine, request: Request) -> Output:
        """The output; on cancellation, what was spent until the abort is charged first."""
        streaming = self.scope.stream_text and Capability.STREAM in engine.capabilities
        work = asyncio.ensure_future(
            self._stream(engine, request) if streaming else _generate(engine, request)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():  # a request that has not reached the engine cannot be aborted
                engine.abort(request.id)
                await asyncio.wait({work}, timeout=0.05)
            if work.exception() is None:
                self._charge(work.result().usage)
            raise

    async def _stream(self, engine: Engine, request: Request) -> Output:
        output = None
        async for chunk in engine.stream(request):
            if chunk.text:
                self.scope.emit(TextDelta(self.scope.path + self.node, chunk.text))
            output = chunk.output or output
        assert output is not None, "the last chunk of a stream carries the output"
        return output

    async def search(
        self,
        queries: Sequence[str],
        k: int | None = None,
        *,
        exclude: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Hits per query from the node's retriever; raises BudgetExhausted beyond the budget."""
        name = self.scope.spec.nodes[self.node].retriever
        retriever = await self.scope.resources.retriever(name)
        self.scope.meter.require_retrievals(len(queries))
        depth = k if k is not None else self.scope.resources.retrievers[name].k
        hits = await asyncio.to_thread(
            retriever.search, list(queries), depth, exclude=list(exclude), where=where
        )
        self._charge(Usage(retrievals=len(queries)))
        return hits

    async def call_workflow(self, workflow: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of the sub-workflow that this node was given when the file was loaded."""
        return await self.scope.call_child(self.node, self.task, inputs)

    def _charge(self, usage: Usage) -> None:
        self.usage = self.usage + usage
        self.scope.meter.charge(usage)


async def _generate(engine: Engine, request: Request) -> Output:
    return (await asyncio.to_thread(engine.generate, [request]))[0]
