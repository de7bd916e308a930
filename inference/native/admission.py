"""The way in: requests are checked, and get what they need, before anything is computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

from inference.adapters.registry import Adapters
from inference.adapters.shape import Shape
from inference.engine import Role
from inference.errors import Unsupported
from inference.grammar import Grammar
from inference.native.answer import room
from inference.native.blocks import BLOCK, salt
from inference.native.loop import Core
from inference.native.model import Model
from inference.native.prompts import encode, fit
from inference.native.rows import check, rows_of
from inference.native.sequence import Sequence as Row
from inference.native.speculation import Proposers
from inference.native.task import Job
from inference.requests import Request
from inference.running import Running
from inference.speculative.base import Start

if TYPE_CHECKING:
    from inference.adapters.lora import Adapter
    from inference.grammar.compiler import Compiler


class Admission:
    """Turns requests into jobs, and jobs into the sequences the step loop works on."""

    def __init__(self, model: Model, core: Core, role: Role = "mixed") -> None:
        self._role = role
        self.running: Running[Job] = Running()
        self.proposers = Proposers(model)
        self._model = model
        self._core = core
        self._adapters: Adapters | None = None
        self._making = threading.Lock()

    @contextmanager
    def admit(self, requests: Sequence[Request]) -> Iterator[list[Job]]:
        """Jobs for all requests, checked and registered together, or none."""
        model = self._model
        jobs = []
        for request in requests:
            check(model, request)
            job = Job(request, *fit(model, request, encode(model, request)))
            if request.grammar is not None:
                job.matcher = self._grammars.matcher(request.grammar)
            jobs.append(job)
        with self.running.admit(jobs):
            try:
                for job in jobs:
                    self._equip(job)
                yield jobs
            finally:
                for job in jobs:
                    if job.speculation is not None:  # of a job that never reached the step loop
                        job.speculation.end()
                    if self._adapters is not None:
                        self._adapters.release(job.request.id)

    def rows(self, job: Job, *, reading: bool = False) -> tuple[Row, ...]:
        """The sequences of a job: its own, then those of its guiding contexts.

        Raises Unsupported for a job that belongs to an engine of another role; `reading` is the
        work of a prompt engine.
        """
        tenant = job.request.tenant
        rows = rows_of(
            self._model,
            self._core,
            job,
            room(self._model, job),
            lambda adapters: self.root(adapters, tenant),
        )
        if self._role == "prompt" and not reading:
            raise Unsupported(
                f"request {job.request.id!r} came to an engine of role 'prompt', which reads "
                "prompts for export_cache only; send it to one of role 'token' or 'mixed'"
            )
        if self._role == "token":
            for row in rows:
                self._require_held(job, row)
        return rows

    def _require_held(self, job: Job, row: Row) -> None:
        """Raise unless all of a prompt but its last block was computed elsewhere, or before."""
        held = row.cached or self._core.call(partial(self._core.blocks.known, row))
        if row.prompt - held > BLOCK:
            raise Unsupported(
                f"request {job.request.id!r} came to an engine of role 'token' with {held} of its "
                f"{row.prompt} prompt tokens computed; import_cache or past must bring all but "
                f"{BLOCK}: send it to an engine of role 'prompt' first"
            )

    def root(self, adapters: Sequence[Adapter], tenant: str) -> bytes:
        """Root of prefix hashes: only what has the same shares blocks."""
        return salt(self._model.name, "+".join(sorted(one.digest for one in adapters)), tenant)

    def compile(self, grammar: Grammar) -> None:
        """Compile a grammar now, so that admitting it later is quick."""
        self._grammars.compile(grammar)

    @property
    def adapters(self) -> Adapters:
        """What is attached; Unsupported where the model's forward pass takes no adapters."""
        model = self._model
        if model.lean is None:
            raise Unsupported(
                f"model {model.name!r} of type {model.config.model_type!r} takes no adapters; "
                "choose a model of the Llama, Qwen2, Qwen3, Mistral or SmolLM family"
            )
        with self._making:  # two first callers must not get a registry each
            if self._adapters is None:
                shape = Shape.of_config(model.config, model.network.dtype, model.device)
                self._adapters = Adapters(shape)
            return self._adapters

    @cached_property
    def _grammars(self) -> Compiler:
        from inference.grammar.compiler import Compiler  # loads xgrammar where it is needed

        return Compiler(self._model.tokenizer, self._model.width, self._model.stop_ids)

    def _equip(self, job: Job) -> None:
        """Give a job its adapters and the prompts of its guiding contexts."""
        request = job.request
        contexts = request.guidance.contexts if request.guidance is not None else ()
        names = dict.fromkeys([*request.adapters, *(n for c in contexts for n in c.adapters)])
        if names:
            found = self.adapters.acquire(request.id, tuple(names))
            held = dict(zip(names, found, strict=True))
            job.adapters = tuple(held[name] for name in request.adapters)
        prompts = []
        for context in contexts:
            beginning = Request(
                context.prompt,
                context.messages,
                context.token_ids,
                request.sampling,
                f"{request.id}, a guiding context",
            )
            ids, _ = fit(self._model, beginning, encode(self._model, beginning))
            prompts.append((ids, tuple(held[name] for name in context.adapters)))
        job.contexts = prompts

    def let_draft(self, job: Job) -> None:
        """Give a generation its drafter, if it asks for one; raises DrafterInputError."""
        request, given = job.request, job.request.draft_prompt
        if request.drafter is None:
            return
        prompt: Sequence[int] = job.prompt
        tokenizer = self._model.tokenizer
        if given is not None:
            text, messages = (given, None) if isinstance(given, str) else (None, given)
            other = Request(
                text, messages, sampling=request.sampling, id=f"{request.id}, its draft"
            )
            prompt, _ = fit(self._model, other, encode(self._model, other))
        start = Start(
            prompt,
            given is None,
            [tokenizer.encode(text, add_special_tokens=False) for text in request.references],
            request.sampling,
            job.seed,
            request.tenant,
            request.adapters,
        )
        job.speculation = self.proposers.begin(request.drafter, start, len(job.prompt))
