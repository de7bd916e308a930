"""The native engine: the door to the step loop, safe from any thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from inference.calibration import load as load_calibration
from inference.engine import Capability, NativeConfig
from inference.errors import InferenceError
from inference.grammar import Grammar
from inference.models import resolve
from inference.native.answer import Answer
from inference.native.blocks import salt
from inference.native.loop import Core
from inference.native.model import Model
from inference.native.prompts import continuation_ids, encode, fit
from inference.native.score import Reading, Scoring
from inference.native.sequence import Sequence as Row
from inference.native.setting import setting_of
from inference.native.task import Job
from inference.native.threads import release_workers
from inference.requests import Chunk, FinishReason, Output, Request, Score
from inference.running import Running

if TYPE_CHECKING:
    from inference.grammar.compiler import Compiler


STEP_TOKENS = 512
"""Tokens of a step where neither the configuration nor a calibration says."""


class NativeEngine:
    """Engine over a transformers model; all requests of all threads share one running batch."""

    def __init__(self, model: Model, config: NativeConfig | None = None) -> None:
        config = config or NativeConfig()
        calibration = load_calibration(setting_of(model))
        self._runtime = calibration.runtime if calibration else None
        knee = calibration.knee if calibration else STEP_TOKENS
        self._loaded: tuple[Model, Core] | None = (
            model,
            Core(
                model,
                config.kv_cache_bytes,
                config.prefix_cache_bytes,
                config.step_tokens or knee,
                config.step_rows,
            ),
        )
        self._name = model.name
        self._context_length = model.context_length
        self._running: Running[Job] = Running()
        self._closing = threading.Lock()

    @classmethod
    def from_config(cls, config: NativeConfig) -> NativeEngine:
        """Resolve the model, fetching it if needed, and load it."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        folder = resolve(config.model)
        model = Model.load(folder, config.model, config.dtype, config.device)
        return cls(model, config)

    @property
    def model(self) -> str:
        """Name or path the model was resolved from."""
        return self._name

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._context_length

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the step loop can do with this model."""
        chat = self._model().tokenizer.chat_template
        return NativeConfig.provides - (set() if chat else {Capability.CHAT})

    def salt_of(self, request: Request) -> bytes:
        """Root of the prefix hashes of a request: only what has the same shares blocks with it."""
        return salt(self._name, tenant=request.tenant)

    def forget_prefixes(self) -> None:
        """Drop the key/value entries kept between requests."""
        self._core().forget()

    def generate(
        self, requests: Sequence[Request], on_output: Callable[[Output], object] | None = None
    ) -> list[Output]:
        """Outputs in the order of the requests; one bad request refuses all, computing none.

        A request that alone cannot go on ends as failed; a forward pass that fails is raised.
        `on_output` sees each output as it is finished. A deadline counts from this call.
        """
        finished: queue.SimpleQueue[Chunk | Exception] = queue.SimpleQueue()

        def emit(item: Chunk | Exception) -> None:
            if isinstance(item, Exception) or item.output is not None:
                finished.put(item)

        outputs: dict[str, Output] = {}
        with self._admitted(requests) as jobs:
            self._start(jobs, emit)
            try:
                while len(outputs) < len(jobs):
                    output = _output(finished.get())
                    outputs[output.id] = output
                    if on_output is not None:
                        on_output(output)
            except BaseException:
                for job in jobs:
                    job.cancelled.set()
                raise
        return [outputs[request.id] for request in requests]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Chunks as they are produced; closing the iterator aborts the request."""
        loop = asyncio.get_running_loop()
        if request.grammar is not None:  # compiled here, so that the loop does not wait for it
            await asyncio.to_thread(self._compile, request.grammar)
        arrived: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
        ended = threading.Event()

        def emit(item: Chunk | Exception) -> None:
            with suppress(RuntimeError):  # the loop was closed; nobody listens any more
                loop.call_soon_threadsafe(arrived.put_nowait, item)
            if isinstance(item, Exception) or item.output is not None:
                ended.set()

        with self._admitted([request]) as jobs:
            self._start(jobs, emit)
            try:
                while True:
                    item = await arrived.get()
                    if isinstance(item, Exception):
                        raise item
                    yield item
                    if item.output is not None:
                        return
            finally:
                jobs[0].cancelled.set()
                await asyncio.to_thread(ended.wait)

    def score(self, request: Request, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Natural-log probabilities of each continuation after the request's prompt.

        A text continuation is tokenised on its own, without special tokens.
        """
        ids = continuation_ids(self._model(), request, continuations)
        if not ids:
            return []
        core, root = self._core(), self.salt_of(request)
        found: queue.SimpleQueue[tuple[int, Score | FinishReason | Exception]] = queue.SimpleQueue()
        with self._admitted([request]) as (job,):
            tasks = [
                Scoring(job, piece, root, lambda result, at=at: found.put((at, result)))  # type: ignore[misc]
                for at, piece in enumerate(ids)
            ]

            def split(prompt: Row) -> None:
                # The last prompt token is read again by each: its logits give the first score.
                core.fork(prompt, tasks, len(job.prompt) - 1)

            release_workers()
            core.add([Reading(job, root, split, lambda why: found.put((-1, why)))])
            scores: dict[int, Score] = {}
            try:
                while len(scores) < len(ids):
                    at, result = found.get()
                    if isinstance(result, Exception):
                        raise result
                    if isinstance(result, FinishReason):
                        raise InferenceError(
                            f"scoring request {request.id!r} ended early: {result.value}"
                        )
                    scores[at] = result
            except BaseException:
                job.cancelled.set()
                raise
        return [scores[at] for at in range(len(ids))]

    def count_tokens(self, request: Request) -> int:
        """Number of prompt tokens the request will cost, before any truncation."""
        return len(encode(self._model(), request))

    def abort(self, request_id: str) -> bool:
        """Stop a running request at its next step; False if it is not running."""
        job = self._running.find(request_id)
        if job is None:
            return False
        job.cancelled.set()
        return True

    def close(self) -> None:
        """Abort what is running and release the model and its caches."""
        with self._closing:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded[1].close()

    def _open(self) -> tuple[Model, Core]:
        loaded = self._loaded
        if loaded is None:
            raise InferenceError(f"the engine of model {self._name!r} is closed; open it again")
        return loaded

    def _model(self) -> Model:
        return self._open()[0]

    def _core(self) -> Core:
        return self._open()[1]

    def _start(self, jobs: Sequence[Job], emit: Callable[[Chunk | Exception], object]) -> None:
        """Hand the jobs to the step loop together."""
        model, core = self._open()
        release_workers()  # the step thread computes from here on
        size = core.runner.store.token_bytes
        core.add(
            [
                Answer(model, job, emit, size, self.salt_of(job.request), self._runtime)
                for job in jobs
            ]
        )

    def _compile(self, grammar: Grammar) -> None:
        self._grammars.compile(grammar)

    @cached_property
    def _grammars(self) -> Compiler:
        from inference.grammar.compiler import Compiler  # loads xgrammar where it is needed

        model = self._model()
        return Compiler(model.tokenizer, model.width, model.stop_ids)

    @contextmanager
    def _admitted(self, requests: Sequence[Request]) -> Iterator[list[Job]]:
        """Jobs for all requests, checked and registered together, or none."""
        model = self._model()
        jobs = [Job(request, *fit(model, request, encode(model, request))) for request in requests]
        for job in jobs:
            if job.request.grammar is not None:
                job.matcher = self._grammars.matcher(job.request.grammar)
        with self._running.admit(jobs):
            yield jobs


def _output(item: Chunk | Exception) -> Output:
    if isinstance(item, Exception):
        raise item
    assert item.output is not None
    return item.output
