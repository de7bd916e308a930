"""The native engine: the door to the step loop, safe from any thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from inference.calibration import load as load_calibration
from inference.engine import Capability, NativeConfig
from inference.errors import InferenceError, InferenceInputError
from inference.models import resolve
from inference.native.admission import Admission
from inference.native.answer import Answer
from inference.native.loop import Core
from inference.native.model import Model
from inference.native.prompts import continuation_ids, encode
from inference.native.rows import check_reading
from inference.native.score import Reading, Scoring
from inference.native.sequence import Sequence as Row
from inference.native.setting import setting_of
from inference.native.snapshot import Snapshot
from inference.native.task import Job
from inference.native.threads import release_workers
from inference.native.totals import Totals
from inference.requests import Chunk, FinishReason, Output, Request, Score

if TYPE_CHECKING:
    from pathlib import Path

    from inference.adapters.lora import Adapter
    from inference.adapters.registry import Adapters

STEP_TOKENS = 512
"""Tokens of a step where neither the configuration nor a calibration says."""

LEAN_ONLY = frozenset(
    {
        Capability.LOGITS,
        Capability.HIDDEN_STATES,
        Capability.ATTENTION_WEIGHTS,
        Capability.LORA,
        Capability.KV_POLICY,
    }
)
"""What only our own forward pass has."""


class NativeEngine:
    """Engine over a transformers model; all requests of all threads share one running batch."""

    def __init__(self, model: Model, config: NativeConfig | None = None) -> None:
        config = config or NativeConfig()
        calibration = load_calibration(setting_of(model))
        self._runtime = calibration.runtime if calibration else None
        knee = calibration.knee if calibration else STEP_TOKENS
        core = Core(
            model,
            config.kv_cache_bytes,
            config.prefix_cache_bytes,
            config.step_tokens or knee,
            config.step_rows,
            prefill_first=config.schedule == "prefill_first",
            runtime=self._runtime,
        )
        self._loaded: tuple[Model, Core, Admission] | None = (
            model,
            core,
            Admission(model, core, config.role),
        )
        self._counter = core.counter
        self._name = model.name
        self._context_length = model.context_length
        self._closing = threading.Lock()
        self._equipping = threading.Lock()
        self._equipped: dict[str, bool] = {}

    @classmethod
    def from_config(cls, config: NativeConfig) -> NativeEngine:
        """Resolve the model, fetching it if needed, load it and attach its adapters."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        folder = resolve(config.model)
        model = Model.load(folder, config.model, config.dtype, config.device, path=config.forward)
        engine = cls(model, config)
        try:
            for name, source in config.adapters.items():
                engine.attach(name, source)
        except BaseException:
            engine.close()
            raise
        return engine

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
        model = self._model()
        lacking = set() if model.tokenizer.chat_template else {Capability.CHAT}
        return NativeConfig.provides - lacking - (set() if model.lean else LEAN_ONLY)

    @property
    def totals(self) -> Totals:
        """What every request that left this engine has spent, by door; also when it is closed."""
        return self._counter.totals

    @property
    def adapters(self) -> Adapters:
        """What is attached, and the shape an adapter must have; Unsupported if it takes none."""
        return self._admission().adapters

    def attach(self, name: str, source: Adapter | str | Path) -> Adapter:
        """Make a LoRA, in memory or in a PEFT folder, known to requests as `name`."""
        return self.adapters.attach(name, source)

    def equip(self, name: str) -> bool:
        """Attach the shipped adapter `name`; False where there is none for this model."""
        from inference.adapters.shipped import shipped

        model = self._model()
        if model.lean is None:
            return False
        with self._equipping:
            if name not in self._equipped:
                folder = shipped(name, model.weights_digest)
                if folder is not None:
                    self.attach(name, folder)
                self._equipped[name] = folder is not None
            return self._equipped[name]

    def detach(self, name: str) -> None:
        """Forget an adapter; AdapterInUse while requests in flight use it."""
        self.adapters.detach(name)
        self._equipped.pop(name, None)
        core = self._core()
        core.call(core.runner.forget_adapters)

    def export_cache(self, request: Request) -> bytes:
        """Read the prompt of a request and return its key/value entries, as safetensors.

        With `request.kv` they are those the policy kept, for `Request.past`; without, they are
        whole, for either that or `import_cache` of an engine of the same model and type.
        """
        check_reading(request, "an export", kv=True)
        found: queue.SimpleQueue[bytes | FinishReason | Exception] = queue.SimpleQueue()
        core = self._core()
        with self._admission().admit([request]) as (job,):
            row = self._admission().rows(job, reading=True)[0]
            read = Reading(
                job, row, lambda row: found.put(core.runner.snapshot(row).to_bytes()), found.put
            )
            release_workers()
            core.add([read])
            try:
                result = found.get()
            except BaseException:
                job.cancelled.set()
                raise
        if isinstance(result, Exception):
            raise result
        if isinstance(result, FinishReason):
            raise InferenceError(f"exporting {request.id!r} ended early: {result.value}")
        return result

    def import_cache(self, data: bytes, *, adapters: Sequence[str] = (), tenant: str = "") -> int:
        """Keep whole entries that `export_cache` returned as a prefix of later requests.

        They serve requests of the same `tenant` with the same `adapters`. Returns how many tokens
        are found again: whole blocks of 16, as many as `prefix_cache_bytes` holds.
        """
        model, core, desk = self._open()
        snapshot = Snapshot.from_bytes(data)
        held = tuple(desk.adapters.get(name) for name in adapters) if adapters else ()
        if not snapshot.shrunken:
            snapshot.check(core.runner.store, model.vocabulary, model.context_length)
        wrong = {
            "were computed by another model, or with another dtype": (
                snapshot.model != model.fingerprint
            ),
            "were computed with other adapters": (
                snapshot.adapters != tuple(one.digest for one in held)
            ),
            f"were shrunk by {snapshot.policy}; give them to a request as its past": (
                snapshot.shrunken
            ),
        }
        for problem, found in wrong.items():
            if found:
                raise InferenceInputError(
                    f"these key/value entries {problem}; export them again for this"
                )
        return core.load(snapshot, desk.root(held, tenant))

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
        with self._admission().admit(requests) as jobs:
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
            await asyncio.to_thread(self._admission().compile, request.grammar)
        arrived: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
        ended = threading.Event()

        def emit(item: Chunk | Exception) -> None:
            with suppress(RuntimeError):  # the loop was closed; nobody listens any more
                loop.call_soon_threadsafe(arrived.put_nowait, item)
            if isinstance(item, Exception) or item.output is not None:
                ended.set()

        with self._admission().admit([request]) as jobs:
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
        check_reading(request, "a score")
        ids = continuation_ids(self._model(), request, continuations)
        if not ids:
            return []
        core = self._core()
        found: queue.SimpleQueue[tuple[int, Score | FinishReason | Exception]] = queue.SimpleQueue()
        with self._admission().admit([request]) as (job,):
            reading = self._admission().rows(job)[0]
            tasks = [
                Scoring(job, piece, reading, lambda result, at=at: found.put((at, result)))  # type: ignore[misc]
                for at, piece in enumerate(ids)
            ]

            def split(prompt: Row) -> None:
                # The last prompt token is read again by each: its logits give the first score.
                core.fork(prompt, tasks, len(job.prompt) - 1)

            release_workers()
            core.add([Reading(job, reading, split, lambda why: found.put((-1, why)), "scores")])
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
        return len(self.encode(request))

    def encode(self, request: Request) -> list[int]:
        """Token ids of a request's prompt, before any truncation."""
        return encode(self._model(), request)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone, without the special tokens that a prompt begins with."""
        ids: list[int] = self._model().tokenizer.encode(text, add_special_tokens=False)
        return ids

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return int(self._model().config.num_hidden_layers)

    @property
    def weights_digest(self) -> str:
        """Digest of configuration and weights, in whatever type they run."""
        return self._model().weights_digest

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens."""
        return self._model().decode(list(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token, with the space before a word; "" for control tokens."""
        model = self._model()
        names = model.tokenizer.convert_ids_to_tokens(list(ids))
        texts = [model.decode([one]) for one in ids]
        return [
            f" {text}" if name.startswith("\u2581") and text[:1] != " " else text
            for name, text in zip(names, texts, strict=True)
        ]

    def abort(self, request_id: str) -> bool:
        """Stop a running request at its next step; False if it is not running."""
        loaded = self._loaded
        job = loaded[2].running.find(request_id) if loaded is not None else None
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
            loaded[2].proposers.close()

    def _open(self) -> tuple[Model, Core, Admission]:
        loaded = self._loaded
        if loaded is None:
            raise InferenceError(f"the engine of model {self._name!r} is closed; open it again")
        return loaded

    def _model(self) -> Model:
        return self._open()[0]

    def _core(self) -> Core:
        return self._open()[1]

    def _admission(self) -> Admission:
        return self._open()[2]

    def _start(self, jobs: Sequence[Job], emit: Callable[[Chunk | Exception], object]) -> None:
        """Hand the jobs to the step loop together."""
        model, core, desk = self._open()
        release_workers()  # the step thread computes from here on
        size = core.runner.store.token_bytes
        for job in jobs:
            desk.let_draft(job)
        answers = [Answer(model, job, desk.rows(job), emit, size, self._runtime) for job in jobs]
        core.add([answer for answer in answers if answer.ended is None])
        for answer in answers:
            if answer.ended is not None:
                core.settle(answer, answer.ended)


def _output(item: Chunk | Exception) -> Output:
    if isinstance(item, Exception):
        raise item
    assert item.output is not None
    return item.output
