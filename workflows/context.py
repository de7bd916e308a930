"""What a node sees of its run: engine, retriever, ledger, under the run's budget."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from langgraph.types import interrupt

from inference import Capability, Engine, Message, Output, Request, SamplingParams, Usage
from inference.engine import Equippable, Watchable
from inference.kv import Full
from inference.speculative import spell
from inference.watched import Watch, Watched
from retrieval import Hit
from workflows.errors import WorkflowInputError
from workflows.events import ModelCalled, Retrieved, TextDelta, TokensProduced
from workflows.triggered import triggered

if TYPE_CHECKING:
    from workflows.scope import Scope

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class Call:
    """One generation of a step: which, and by the engine of which resource."""

    number: int
    resource: str
    engine: Engine
    fingerprint: str


class StepContext:
    """One execution of one node; implements `workflows.nodes.base.NodeContext`."""

    __slots__ = ("calls", "node", "notes", "sampling", "scope", "stats", "task", "usage")

    def __init__(self, scope: Scope, node: str, task: str, sampling: Mapping[str, Any]) -> None:
        self.scope = scope
        self.node = node
        self.task = task
        self.sampling = sampling
        self.usage = Usage()
        self.notes: dict[str, Any] = {}
        self.stats: list[Mapping[str, Any]] = []
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
        references: Sequence[str] = (),
        draft_prompt: Sequence[Message] | None = None,
        trained: str | None = None,
    ) -> Output:
        """One generation, cut to what the run's budget leaves.

        A drafter of the node may copy from `references`, and reads `draft_prompt` in place of the
        prompt if it is a model; a trigger of the node searches while the answer is written.
        `trained` is a shipped adapter that `equipped` has promised.

        What an earlier attempt at this step had produced is taken over, but not of an answer that
        a trigger watches. Under a grammar the node's own stop strings are left out, and the trace
        says so: the grammar ends the answer. Raises BudgetExhausted when the prompt alone is more
        than what is left, and RequestFailed when the engine could not finish the answer.
        """
        node = self.scope.spec.nodes[self.node]
        trigger = node.watches()
        if trigger is not None:
            params = self._params(max_tokens, stop)
            return await triggered(self, trigger, prompt, params, trained)
        engine = await self.scope.resources.engine(node.engine)
        spec = node.grammar
        if spec is not None and stop:
            self.note(stop_replaced_by_grammar=list(stop))
            stop = ()
        self.calls += 1
        request = Request(
            prompt=prompt if isinstance(prompt, str) else None,
            messages=None if isinstance(prompt, str) else list(prompt),
            sampling=self._params(max_tokens, stop),
            seconds=self._seconds_left(),
            grammar=None if spec is None else spec.build(),
            adapters=node.adapters if trained is None else (trained,),
            kv=node.policy(),
            drafter=node.drafts(),
            references=tuple(references),
            draft_prompt=draft_prompt,
            tenant=self.scope.tenant,
        )
        call = Call(self.calls, node.engine, engine, fingerprint(engine.model, request))
        request = self._within_budget(engine, self._resume(call, request))
        output = await self._run(call, request)
        for key in ("kv", "drafter"):
            if key in output.notes:
                self.note(**{key: output.notes[key]})
        output.raise_if_failed()
        return output

    async def aside(self, prompt: Sequence[Message], max_tokens: int, stop: Sequence[str]) -> str:
        """A greedy generation beside the answer, which is neither streamed nor journalled."""
        node = self.scope.spec.nodes[self.node]
        engine = await self.scope.resources.engine(node.engine)
        self.calls += 1
        request = Request(
            messages=list(prompt),
            sampling=SamplingParams(max_tokens=max_tokens, stop=tuple(stop), seed=self._seed()),
            seconds=self._seconds_left(),
            tenant=self.scope.tenant,
        )
        return (await self._unshown(engine, request)).text

    async def watch(
        self,
        prompt: Sequence[Message] | str,
        *,
        kept: Sequence[int] = (),
        max_tokens: int,
        weights: Sequence[float] | None = None,
        trained: str | None = None,
    ) -> Watched:
        """One generation behind the tokens `kept`, with what the model attended to.

        It is neither streamed nor kept in the journal, because it may be taken back, and no stop
        string ends it. All of a step draw with one seed, so that going on gives what one generation
        would.
        """
        node = self.scope.spec.nodes[self.node]
        engine = await self.scope.resources.engine(node.engine)
        self.calls += 1
        params = self._params(None, ())
        params = replace(params, max_tokens=max_tokens, stop=())
        if self.sampling.get("seed") is None:
            params = replace(params, seed=self._seed(1))
        request = Request(
            prompt=prompt if isinstance(prompt, str) else None,
            messages=None if isinstance(prompt, str) else list(prompt),
            sampling=params,
            seconds=self._seconds_left(),
            adapters=node.adapters if trained is None else (trained,),
            tenant=self.scope.tenant,
        )
        watch = Watch(engine, request, kept, weights)
        output = await self._unshown(engine, watch.request)
        return await asyncio.to_thread(watch.result, output)

    async def _unshown(self, engine: Engine, request: Request) -> Output:
        """The output of a call that is neither streamed nor journalled."""
        request = self._within_budget(engine, request)
        resource = self.scope.spec.nodes[self.node].engine
        call = Call(self.calls, resource, engine, fingerprint(engine.model, request))
        output = await self._run(call, request, shown=False)
        output.raise_if_failed()
        return output

    async def watched_model(self) -> Watchable:
        """The node's engine, for its digest, layers and decoding; WorkflowInputError without."""
        engine = await self.scope.resources.engine(self.scope.spec.nodes[self.node].engine)
        if not isinstance(engine, Watchable):
            raise WorkflowInputError(
                f"node {self.node!r} watches attention, which engine "
                f"{type(engine).__name__} does not show; use the native engine"
            )
        return engine

    async def equipped(self, name: str) -> bool:
        """Whether the shipped adapter `name` fits the node's engine, which then has it.

        False too where the node names adapters of its own.
        """
        node = self.scope.spec.nodes[self.node]
        engine = await self.scope.resources.engine(node.engine)
        if node.adapters or not isinstance(engine, Equippable):
            return False
        return await asyncio.to_thread(engine.equip, name)

    async def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens that each text takes in a prompt of the node's engine."""
        engine = await self.scope.resources.engine(self.scope.spec.nodes[self.node].engine)

        def counted() -> list[int]:
            return [engine.count_tokens(Request(prompt=text)) if text else 0 for text in texts]

        return await asyncio.to_thread(counted)

    def _resume(self, call: Call, request: Request) -> Request:
        """The request, with the tokens that an earlier attempt at it had produced."""
        past, key = self.scope.past, (self.task, call.number)
        tokens = past.produced.get(key, ())
        if not tokens or key in self.scope.resumed:
            return request
        self.scope.resumed.add(key)  # a retry is another try, from the beginning
        if request.kv is not None and type(request.kv) is not Full:
            self.note(not_resumed="its cache policy shrinks what it keeps: decoded again")
            return request
        if Capability.RESUME not in call.engine.capabilities:
            self.note(not_resumed=f"engine {call.resource!r} cannot go on inside a generation")
            return request
        if past.requests.get(key) != call.fingerprint:
            self.note(not_resumed="the step asks something else than before")
            return request
        self.note(resumed_tokens=len(tokens))
        return replace(request, resumed=tokens)

    def _within_budget(self, engine: Engine, request: Request) -> Request:
        """The request, no longer than the tokens that are left allow."""
        if self.scope.meter.tokens_left() is None:
            return request
        room = self.scope.meter.require_tokens(engine.count_tokens(request))
        longest = request.sampling.max_tokens
        if room is None or room + len(request.resumed) >= longest:
            return request
        cut = room + len(request.resumed)
        self.note(max_tokens_cut_by_budget=cut)
        return replace(request, sampling=replace(request.sampling, max_tokens=cut))

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

    def _seed(self, call: int | None = None) -> int:
        """A seed of its own for every generation of the run, the same when the run is replayed."""
        origin = f"{self.scope.seed}/{self.scope.path}{self.task}/{call or self.calls}"
        return int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8], "big")

    async def _run(self, call: Call, request: Request, *, shown: bool = True) -> Output:
        """The output; on cancellation, what was spent until the abort is charged first."""
        engine, began = call.engine, time.perf_counter()
        started_at = time.time()
        streams = Capability.STREAM in engine.capabilities
        if self.scope.journalled and not streams:
            self.note(warm_resume=f"engine {call.resource!r} does not stream: a kill loses tokens")
        wanted = streams and shown and (self.scope.stream_text or self.scope.journalled)
        work = asyncio.ensure_future(
            self._stream(call, request) if wanted else _generate(engine, request)
        )
        cancelled: asyncio.CancelledError | None = None
        while not work.done():  # a request that has not reached the engine cannot be aborted
            try:
                await asyncio.wait({work}, timeout=None if cancelled is None else 0.05)
            except asyncio.CancelledError as error:
                cancelled = error
            if cancelled is not None:
                engine.abort(request.id)
        if cancelled is None or work.exception() is None:
            self._called(call, request, work.result(), started_at, time.perf_counter() - began)
        if cancelled is not None:
            raise cancelled
        return work.result()

    def _called(
        self, call: Call, request: Request, output: Output, started_at: float, seconds: float
    ) -> None:
        """Charge a generation and tell of it."""
        self._charge(output.usage)
        stats = output.stats.to_dict()
        self.stats.append(stats)
        self.scope.emit(
            ModelCalled(
                self.scope.path + self.node,
                self.task,
                call.number,
                self.scope.resources.engine_name(call.resource),
                call.engine.model,
                asdict(request.sampling),
                output.finish_reason.value,
                started_at,
                seconds,
                output.usage,
                stats,
                "text_completion" if request.messages is None else "chat",
            )
        )

    async def _stream(self, call: Call, request: Request) -> Output:
        output, at = None, len(request.resumed)
        node = self.scope.path + self.node
        async for chunk in call.engine.stream(request):
            if chunk.token_ids:
                self.scope.emit(
                    TokensProduced(
                        node, self.task, call.number, at, chunk.token_ids, call.fingerprint
                    )
                )
                at += len(chunk.token_ids)
            if chunk.text and self.scope.stream_text:
                self.scope.emit(TextDelta(node, chunk.text))
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
        started_at, began = time.time(), time.perf_counter()
        hits = await asyncio.to_thread(
            retriever.search, list(queries), depth, exclude=list(exclude), where=where
        )
        self._charge(Usage(retrievals=len(queries)))
        self.scope.emit(
            Retrieved(
                self.scope.path + self.node,
                self.task,
                self.scope.resources.retriever_name(name),
                len(queries),
                depth,
                sum(map(len, hits)),
                started_at,
                time.perf_counter() - began,
            )
        )
        return hits

    async def call_workflow(self, workflow: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of the sub-workflow that this node was given when the file was loaded."""
        return await self.scope.call_child(self.node, self.task, inputs)

    def ask(self, shown: Mapping[str, Any]) -> Any:
        """The answer to what is shown; raises GraphInterrupt, which rests the run, without one."""
        return interrupt({"node": self.scope.path + self.node, **shown})

    def _charge(self, usage: Usage) -> None:
        self.usage = self.usage + usage
        self.scope.meter.charge(usage)


def fingerprint(model: str, request: Request) -> str:
    """What decides the tokens of a generation, as 16 hex digits; its length does not."""
    asked = [
        model,
        request.prompt,
        None if request.messages is None else [asdict(message) for message in request.messages],
        asdict(replace(request.sampling, max_tokens=1)),
        None if request.grammar is None else repr(request.grammar),
        list(request.adapters),
        *_drafted(request),
    ]
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _drafted(request: Request) -> list[object]:
    """What is drafted, where the tokens depend on it."""
    drafter = request.drafter
    if drafter is None or drafter.rule.name == "match":
        return []
    given = request.draft_prompt
    read = given if given is None or isinstance(given, str) else [asdict(one) for one in given]
    return [spell(drafter), read, list(request.references)]


async def _generate(engine: Engine, request: Request) -> Output:
    return (await asyncio.to_thread(engine.generate, [request]))[0]
