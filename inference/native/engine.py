"""The native engine: the door to the decode loop, safe from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from inference.engine import Capability, NativeConfig
from inference.errors import InferenceError, InferenceInputError
from inference.grammar import Grammar
from inference.models import resolve
from inference.native.decode import Decoder, Interrupted, Job
from inference.native.model import Model
from inference.native.prefix import PrefixCache
from inference.native.prompts import continuation_ids, encode, fit
from inference.native.score import score
from inference.requests import Chunk, Output, Request, Score

if TYPE_CHECKING:
    from inference.grammar.compiler import Compiler


class NativeEngine:
    """Engine over a transformers model; requests of one call run one after the other."""

    def __init__(self, model: Model, prefix_cache_bytes: int = 512 * 2**20) -> None:
        self._loaded: Model | None = model
        self._name = model.name
        self._context_length = model.context_length
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._running: dict[str, Job] = {}
        self._registry = threading.Lock()

    @classmethod
    def from_config(cls, config: NativeConfig) -> NativeEngine:
        """Resolve the model, fetching it if needed, and load it."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        folder = resolve(config.model)
        model = Model.load(folder, config.model, config.dtype, config.device)
        return cls(model, config.prefix_cache_bytes)

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
        """What the decode loop can do with this model."""
        model = self._model()
        missing = set() if model.reusable else {Capability.PREFIX_REUSE}
        if not model.tokenizer.chat_template:
            missing.add(Capability.CHAT)
        return NativeConfig.provides - missing

    @property
    def prefixes(self) -> PrefixCache:
        """Key/value entries kept between requests."""
        return self._prefixes

    def generate(
        self, requests: Sequence[Request], on_output: Callable[[Output], object] | None = None
    ) -> list[Output]:
        """Outputs in the order of the requests; one bad request refuses all, computing none.

        `on_output` sees each output as it is finished. A deadline counts from this call.
        """
        outputs = []
        with self._admitted(requests) as jobs:
            for job in jobs:
                for chunk in Decoder(self._model(), self._prefixes, job).run():
                    if chunk.output is not None:
                        outputs.append(chunk.output)
                if on_output is not None:
                    on_output(outputs[-1])
        return outputs

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Chunks as they are produced; closing the iterator aborts the request."""
        loop = asyncio.get_running_loop()
        if request.grammar is not None:  # compiled here, so that the loop does not wait for it
            await asyncio.to_thread(self._compile, request.grammar)
        queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

        def post(item: Chunk | Exception) -> None:
            with suppress(RuntimeError):  # the loop was closed; nobody listens any more
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def work(job: Job) -> None:
            try:
                for chunk in Decoder(self._model(), self._prefixes, job).run():
                    post(chunk)
            except Exception as error:  # handed to the consumer, which raises it
                post(error)

        with self._admitted([request]) as (job,):
            worker = threading.Thread(target=work, args=(job,), name=f"decode-{request.id}")
            worker.start()
            try:
                while True:
                    item = await queue.get()
                    if isinstance(item, Exception):
                        raise item
                    yield item
                    if item.output is not None:
                        return
            finally:
                job.cancelled.set()
                await asyncio.to_thread(worker.join)

    def score(self, request: Request, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Natural-log probabilities of each continuation after the request's prompt.

        A text continuation is tokenised on its own, without special tokens.
        """
        model = self._model()
        ids = continuation_ids(model, request, continuations)
        with self._admitted([request]) as (job,):
            try:
                return score(model, self._prefixes, job, ids) if ids else []
            except Interrupted as interruption:
                raise InferenceError(
                    f"scoring request {request.id!r} ended early: {interruption.reason.value}"
                ) from None

    def count_tokens(self, request: Request) -> int:
        """Number of prompt tokens the request will cost, before any truncation."""
        return len(encode(self._model(), request))

    def abort(self, request_id: str) -> bool:
        """Stop a running request at its next step; False if it is not running."""
        with self._registry:
            job = self._running.get(request_id)
        if job is None:
            return False
        job.cancelled.set()
        return True

    def close(self) -> None:
        """Abort what is running and release the model and its caches."""
        with self._registry:
            for job in self._running.values():
                job.cancelled.set()
            self._loaded = None
        self._prefixes.clear()

    def _model(self) -> Model:
        model = self._loaded
        if model is None:
            raise InferenceError(f"the engine of model {self._name!r} is closed; open it again")
        return model

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
        with self._registry:
            ids: set[str] = set()
            for request in requests:
                if request.id in ids or request.id in self._running:
                    raise InferenceInputError(
                        f"request id {request.id!r} is already in use; ids that run at the same "
                        "time must differ"
                    )
                ids.add(request.id)
            self._running.update({job.request.id: job for job in jobs})
        try:
            yield jobs
        finally:
            with self._registry:
                for job in jobs:
                    del self._running[job.request.id]
