"""The engine over `vllm.LLM` inside this process, for an environment that holds vLLM.

Not verified: a GPU.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engine import Capability, VLLMConfig
from inference.errors import InferenceError, InferenceInputError, PromptTooLong
from inference.models import resolve
from inference.native.prompts import continuation_ids, encode, fit
from inference.requests import Chunk, Output, Request, Score, refuse_native_only
from inference.running import Running
from inference.vllm.loop import Loop
from inference.vllm.server import GRAMMARS

if TYPE_CHECKING:
    from inference.grammar.judge import Judge
    from inference.vllm.tasks import Answer

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no process beside this one
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
"""What vLLM reads nowhere else; set in this process when the engine opens."""

_SEAT = threading.Lock()


class InProcessEngine:
    """Engine over vLLM's offline class; all requests of all threads share its running batch.

    At most one is open at a time: closing a vLLM destroys process groups that all would share.
    """

    def __init__(self, loop: Loop, name: str) -> None:
        self._loop = loop
        self.name = name
        self.tokenizer: Any = loop.llm.get_tokenizer()
        self.context_length = int(loop.llm.model_config.max_model_len)
        self.vocabulary = int(loop.llm.model_config.get_vocab_size())
        self._running: Running[Answer] = Running()
        self._closing = threading.Lock()
        self._seated = True

    @classmethod
    def first(cls, config: VLLMConfig) -> InProcessEngine | None:
        """Resolve the model, fetching it if needed, and load it; None while another is open."""
        if not _SEAT.acquire(blocking=False):
            return None
        try:
            folder = resolve(config.model)
            return cls(Loop(lambda: _load(config, folder), config.model), config.model)
        except BaseException:
            _SEAT.release()
            raise

    @property
    def model(self) -> str:
        """Name or path the model was resolved from."""
        return self.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What vLLM does with this model."""
        chat = self.tokenizer.chat_template
        return VLLMConfig.provides - (set() if chat else {Capability.CHAT})

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Outputs in the order of the requests; one bad request refuses all, computing none."""
        finished: queue.SimpleQueue[Chunk | Exception] = queue.SimpleQueue()
        tasks = [self._answer(request, finished.put) for request in requests]
        outputs: dict[str, Output] = {}
        with self._running.admit(tasks):
            try:
                self._loop.add(tasks)
                while len(outputs) < len(tasks):
                    item = finished.get()
                    if isinstance(item, Exception):
                        raise item
                    if item.output is not None:
                        outputs[item.output.id] = item.output
            except BaseException:
                for task in tasks:
                    self._stop(task)
                raise
        return [_judged(task, outputs[task.request.id]) for task in tasks]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Chunks as they are produced; closing the iterator aborts the request."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

        def emit(item: Chunk | Exception) -> None:
            with suppress(RuntimeError):  # the loop was closed; nobody listens any more
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        task = await asyncio.to_thread(self._answer, request, emit)
        with self._running.admit([task]):
            try:
                await asyncio.to_thread(self._loop.add, [task])
                while True:
                    item = await arrived.get()
                    if isinstance(item, Exception):
                        raise item
                    if item.output is None:
                        yield item
                        continue
                    yield replace(item, output=await asyncio.to_thread(_judged, task, item.output))
                    return
            finally:
                await asyncio.to_thread(self._stop, task)

    def score(self, request: Request, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Natural-log probabilities of each continuation after the request's prompt.

        A text continuation is tokenised on its own, without special tokens.
        """
        from inference.vllm.tasks import Scoring

        refuse_native_only(request, "the engine vllm")
        pieces = continuation_ids(self, request, continuations)
        prompt, _ = fit(self, request, encode(self, request))
        for at, piece in enumerate(pieces):
            if len(prompt) + len(piece) >= self.context_length:  # vLLM always generates a token
                raise PromptTooLong(
                    f"continuation {at} of request {request.id!r} has {len(piece)} tokens, and the "
                    f"context of {self.context_length} leaves room for "
                    f"{self.context_length - len(prompt) - 1} after the prompt; shorten one of them"
                )
        found: queue.SimpleQueue[tuple[int, Score | Exception]] = queue.SimpleQueue()
        tasks = [
            Scoring(request, prompt, piece, lambda result, at=at: found.put((at, result)))  # type: ignore[misc]
            for at, piece in enumerate(pieces)
        ]
        scores: dict[int, Score] = {}
        try:
            self._loop.add(tasks)
            while len(scores) < len(tasks):
                at, result = found.get()
                if isinstance(result, Exception):
                    raise result
                scores[at] = result
        except BaseException:
            for task in tasks:
                self._stop(task)
            raise
        return [scores[at] for at in range(len(tasks))]

    def count_tokens(self, request: Request) -> int:
        """Number of prompt tokens the request will cost, before any truncation."""
        return len(encode(self, request))

    def abort(self, request_id: str) -> bool:
        """Stop a running request at its next step; False if it is not running."""
        task = self._running.find(request_id)
        if task is None:
            return False
        self._stop(task)
        return True

    def close(self) -> None:
        """Fail what is running and release the model; harmless when repeated."""
        self._loop.close()
        with self._closing:
            seated, self._seated = self._seated, False
        if seated:
            _SEAT.release()

    def _stop(self, task: Any) -> None:
        with suppress(InferenceError):  # a closed engine has ended it already
            self._loop.abort(task)

    def _answer(self, request: Request, emit: Callable[[Chunk | Exception], object]) -> Answer:
        """A checked request, its prompt encoded and its grammar compiled."""
        from inference.vllm.tasks import Answer

        refuse_native_only(request, "the engine vllm")
        ids, truncated = fit(self, request, encode(self, request))
        matcher = None if request.grammar is None else self._judge.matcher(request.grammar)
        return Answer(request, ids, truncated, self.context_length - len(ids), matcher, emit)

    @cached_property
    def _judge(self) -> Judge:
        from inference.grammar.judge import Judge  # loads xgrammar where it is needed

        return Judge()


def _judged(task: Answer, output: Output) -> Output:
    """The output, noting whether its text belongs to the grammar; may take long."""
    from inference.grammar.judge import verdict

    if task.matcher is None:
        return output
    return replace(output, notes={**output.notes, "grammar": verdict(task.matcher, output.text)})


def _load(config: VLLMConfig, folder: Path) -> Any:
    """A `vllm.LLM`; the thread that calls it must be the one that steps it."""
    os.environ.update(ENVIRONMENT)
    import torch
    from vllm import LLM

    # vLLM's CPU worker replaces this function for the whole process.
    set_num_threads = torch.set_num_threads
    if config.threads is not None:
        set_num_threads(config.threads)
    try:
        return LLM(
            model=str(folder),
            dtype=config.dtype,
            max_model_len=config.context_length,
            max_num_seqs=config.concurrency,
            kv_cache_memory_bytes=config.kv_cache_gib * 2**30,
            enable_prefix_caching=True,
            structured_outputs_config=GRAMMARS,
            use_tqdm_on_load=False,
        )
    except (ValueError, OSError) as error:  # pydantic's errors are ValueErrors
        reason = " ".join(str(error).split())[:400]
        raise InferenceInputError(
            f"vLLM does not take model {config.model!r} with these options: {reason}; correct them"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise InferenceError(f"vLLM failed to load model {config.model!r}: {reason}") from error
    finally:
        torch.set_num_threads = set_num_threads
