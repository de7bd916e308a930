"""One generation on its way: draws tokens from logits, emits chunks, then the output."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from inference.budget import Usage
from inference.errors import InferenceError, InferenceInputError, TapFailed
from inference.idealized import IdealizedRuntime
from inference.kv import name_of
from inference.native.logprobs import token_logprob
from inference.native.model import Model
from inference.native.prompts import resumed_ids
from inference.native.sampling import choose, process, require_sound
from inference.native.sequence import Sequence as Row
from inference.native.speculation import Speculation
from inference.native.task import Job
from inference.native.text import Detokenizer, StopFinder
from inference.requests import Chunk, FinishReason, Output, Stats, TokenLogprob, tick
from inference.taps import Choice, Tapped


class Answer:
    """Task of one request; `emit` gets chunks, the last with the output, or the error.

    `rows` are the request's sequence and those of its guiding contexts, all of which get every
    chosen token. `token_bytes` is what one token takes in the shared store.
    """

    def __init__(
        self,
        model: Model,
        job: Job,
        rows: Sequence[Row],
        emit: Callable[[Chunk | Exception], object],
        token_bytes: int,
        runtime: IdealizedRuntime | None = None,
    ) -> None:
        self.job = job
        self.rows = rows
        self._room = room(model, job)
        self._stop_ids = model.stop_ids
        self._vocabulary = model.vocabulary
        self._tokenizer = model.tokenizer
        self._emit = emit
        self._token_bytes = token_bytes
        self._runtime = runtime
        self._detokenizer = Detokenizer(model.decode)
        self._stops = StopFinder(job.request.sampling.stop)
        self._text = ""  # final so far
        self._emitted = (0, 0, 0)  # how much of text, produced and logprobs went out in chunks
        self._logprobs: list[TokenLogprob] = []
        self._waiting: dict[Row, torch.Tensor] = {}  # logits of rows whose others are not there yet
        self._error: Exception | None = None
        self._forwards = 0
        self._peak = 0  # bytes
        self._read_tokens = 0
        self._reused = 0
        self._read = 0.0
        self.door = "answers"
        self.continued = 0
        self._next: int | None = None  # the token behind an accepted path, chosen with it
        self._end: FinishReason | None = None  # an accepted token was the last one
        if job.speculation is not None:
            rows[0].shows_hidden = job.speculation.proposer.reads_hidden
        self.ended = self._resume()

    @property
    def _produced(self) -> list[int]:
        return self.rows[0].ids[len(self.job.prompt) :]

    def _resume(self) -> FinishReason | None:
        """Take over the tokens that were produced before; the reason if the answer ends in them.

        What follows the end is left out. The cache is filled with them as with a prompt.
        """
        job, matcher = self.job, self.job.matcher
        reason = None
        for token in resumed_ids(job.request, self._vocabulary):
            if matcher is not None and not matcher.accept(token):
                raise InferenceInputError(
                    f"request {job.request.id!r} resumes with token {token}, which its grammar "
                    f"refuses behind {matcher.tokens} tokens; give what the cut generation "
                    "produced, or leave resumed out"
                )
            job.resumed += 1
            reason = self._push(token)
            if reason is not None:
                break
        self._emitted = (len(self._text), job.resumed, 0)
        return reason

    def stepped(self, tapped: Sequence[Tapped]) -> FinishReason | None:
        """Count a forward pass and the entries held in it, and show what is watched."""
        self._forwards += 1
        self._peak = max(self._peak, sum(self._bytes(row) for row in self.rows))
        self._read_tokens = max(self._read_tokens, self.rows[0].cached)
        self._reused = self.rows[0].reused
        try:
            for one in tapped:
                self._show(one)
        except TapFailed as error:
            self._error = error
            return FinishReason.FAILED
        cache = self.rows[0].cache
        if cache is not None and cache.error is not None:
            self._error = cache.error
            return FinishReason.FAILED
        return None

    def take(self, row: Row, logits: torch.Tensor) -> FinishReason | None:
        """Draw the next token from logits [1, vocabulary]; the reason if it is the last.

        With guidance it is drawn when every context has its logits. What goes wrong with one
        request is that request's alone, which then ends as failed.
        """
        try:
            self._waiting[row] = logits[-1]
            if len(self._waiting) < len(self.rows):
                return None
            found = [self._waiting[one] for one in self.rows]
            self._waiting = {}
            return self._take(found)
        except Exception as error:
            self._error = error
            return FinishReason.FAILED

    @property
    def left(self) -> int:
        """Tokens that may still be produced."""
        return self._room - len(self._produced)

    def verify(self, row: Row, logits: torch.Tensor) -> Sequence[int]:
        """Take over what is accepted of a draft, as far as the answer goes; its path."""
        speculation, draft, request = self.job.speculation, row.draft, self.job.request
        assert speculation is not None and draft is not None
        path: list[int] = []
        before = len(row.ids)
        try:
            verdict = speculation.verify(row, logits, request.sampling, self.job.matcher)
            for node in verdict.path:
                path.append(node)
                self._end = self._accept(speculation, draft.parents[node], draft.ids[node])
                if self._end is not None:
                    break
            else:
                last = path[-1] if path else -1
                self._show_choice(speculation, last, verdict.token)
                self._next = verdict.token
        except Exception as error:
            self._error, self._end = error, FinishReason.FAILED
            path = path[: len(row.ids) - before]
        speculation.settled(len(draft.ids), path)
        return path

    def _accept(self, speculation: Speculation, node: int, token: int) -> FinishReason | None:
        """Take over a token that follows a node of the draft."""
        self._show_choice(speculation, node, token)
        self._record(speculation.raw[node], token)
        self._read_grammar(token)
        return self._push(token)

    def _show_choice(self, speculation: Speculation, node: int, token: int) -> None:
        taps = self.job.request.taps
        if taps is not None and taps.logits:
            raw, processed = speculation.raw[node].clone(), speculation.processed[node].float()
            self._show(Choice(len(self.rows[0].ids), raw, processed, token))

    def _take(self, found: Sequence[torch.Tensor]) -> FinishReason | None:
        if not self._read:
            self._read = time.monotonic()
        if self._end is not None:
            return self._end
        token, self._next = self._next, None
        if token is None:
            token = self._choose(found)
        self._record(found[0], token)
        self._read_grammar(token)
        reason = self._push(token)
        if reason is None and len(self._text) > self._emitted[0]:
            self._emit(self._chunk())
        return reason

    def _record(self, logits: torch.Tensor, token: int) -> None:
        """Note a token's log-probability, where that is asked for."""
        asked = self.job.request.logprobs
        if asked is not None:
            self._logprobs.append(token_logprob(self._tokenizer, logits, token, asked))

    def _read_grammar(self, token: int) -> None:
        matcher = self.job.matcher
        if matcher is not None and not matcher.accept(token):
            raise AssertionError(f"token {token} was chosen against the mask")

    def _push(self, token: int) -> FinishReason | None:
        """Add a token to every row and its text to the answer; the reason if it is the last."""
        for row in self.rows:
            row.ids.append(token)
        if token in self._stop_ids:
            return FinishReason.STOP
        self._text += self._stops.push(self._detokenizer.push(token))
        if self._stops.found is not None:
            return FinishReason.STOP_STRING
        return FinishReason.LENGTH if len(self._produced) == self._room else None

    def _choose(self, found: Sequence[torch.Tensor]) -> int:
        """The next token: guidance, then the grammar's mask, then the sampler."""
        job, request, ids = self.job, self.job.request, self.rows[0].ids
        raw = row = found[0]
        if request.guidance is not None:
            for one in found:
                require_sound(one)  # a combination could hide it
            row = request.guidance.combine(found)
        if job.matcher is not None:
            require_sound(row)  # the mask could hide it
            row = job.matcher.mask(row)
        token = choose(row, request.sampling, job.seed, len(ids), ids)
        if request.taps is not None and request.taps.logits:
            processed = process(row, request.sampling, ids).float()
            self._show(Choice(len(ids), raw.clone(), processed, token))
        return token

    def _show(self, seen: Tapped | Choice) -> None:
        """Call the request's sink; TapFailed if it raises."""
        assert self.job.request.taps is not None
        try:
            self.job.request.taps.sink(seen)
        except Exception as error:
            raise TapFailed(
                f"the tap of request {self.job.request.id!r} raised {type(error).__name__}: "
                f"{error}; correct its sink"
            ) from error

    def end(self, reason: FinishReason) -> None:
        """Settle the text and emit the output."""
        self._stop_drafting()
        try:
            self._text += self._stops.push(self._detokenizer.finish())
            if self._stops.found is None:
                self._text += self._stops.finish()
            elif reason in (FinishReason.LENGTH, FinishReason.STOP):
                reason = FinishReason.STOP_STRING
        except Exception as error:
            reason, self._error = FinishReason.FAILED, self._error or error
        self._emit(self._chunk(self._output(reason)))

    def fail(self, error: Exception) -> None:
        """Emit the error in place of an output."""
        self._stop_drafting()
        self._emit(error)

    def _stop_drafting(self) -> None:
        if self.job.speculation is not None:
            self.job.speculation.end()

    def _bytes(self, row: Row) -> int:
        """Bytes of key/value entries that a row holds, measured."""
        return row.cache.peak if row.cache is not None else row.cached * self._token_bytes

    def _chunk(self, output: Output | None = None) -> Chunk:
        """Everything final that no chunk has carried yet."""
        text, tokens, told = self._emitted
        produced, logprobs = self._produced, self._logprobs
        self._emitted = (len(self._text), len(produced), len(logprobs))
        return Chunk(self._text[text:], tuple(produced[tokens:]), output, tuple(logprobs[told:]))

    def _output(self, reason: FinishReason) -> Output:
        job, produced = self.job, self._produced
        seconds = tick(job.seconds)
        decoded = len(produced) - job.resumed
        drafts = job.speculation
        return Output(
            id=job.request.id,
            text=self._text,
            token_ids=tuple(produced),
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=sum(row.prompt for row in self.rows),
                cached_tokens=sum(min(row.reused, row.prompt) for row in self.rows),
                completion_tokens=decoded,
                model_calls=1,
                seconds=seconds,
            ),
            stats=Stats(
                forwards=self._forwards,
                drafted=drafts.drafted if drafts else 0,
                accepted=drafts.accepted if drafts else 0,
                peak_kv_bytes=self._peak,
                seconds=seconds,
                prefill_seconds=tick(self._read - job.began) if self._read else seconds,
                idealized_seconds=self._idealized(decoded),
                truncated_tokens=job.truncated,
                resumed_tokens=job.resumed,
            ),
            notes=self._notes(),
            logprobs=tuple(self._logprobs),
        )

    def _notes(self) -> dict[str, object]:
        """What a reader of the output must know beyond the numbers."""
        job, request, cache = self.job, self.job.request, self.rows[0].cache
        notes: dict[str, object] = {}
        if request.sampling.temperature > 0:
            notes["seed"] = job.seed
        if self._stops.found is not None:
            notes["stop_string"] = self._stops.found
        if job.matcher is not None:
            notes["grammar"] = job.matcher.note()
        if request.kv is not None:
            held = [n for layer in cache.entries for n in layer] if cache else [self._read_tokens]
            notes["kv"] = {
                "policy": name_of(request.kv),
                "options": request.kv.model_dump(mode="json"),
                "lossless": request.kv.lossless,
                "entries": sum(held) / len(held),
            }
        if job.speculation is not None:
            notes["drafter"] = job.speculation.notes()
        if request.skip_layers is not None:
            notes["skipped_layers"] = list(request.skip_layers)
        if request.resumed and not job.resumed:
            notes["resumed"] = "decoded again: its entries are shrunk or watched"
        if self._error is not None:
            notes["error"] = _told(self._error)
        return notes

    def _idealized(self, produced: int) -> float | None:
        """Predicted seconds for the tokens that were read and computed, and those produced."""
        if self._runtime is None:
            return None
        given = len(self.job.prompt) + self.job.resumed
        computed = min(self._read_tokens, given) - self._reused
        return tick(self._runtime.seconds(computed, produced)) if computed > 0 else 0.0


def room(model: Model, job: Job) -> int:
    """Tokens a job may produce: what was asked for, as far as every context has place for it."""
    longest = max([len(job.prompt), *(len(ids) for ids, _ in job.contexts)])
    return min(job.request.sampling.max_tokens, model.context_length - longest)


def _told(error: Exception) -> dict[str, str]:
    """Code and message of what stopped a request; a defect of ours also logs its traceback."""
    if isinstance(error, InferenceError):
        return {"code": error.code, "message": str(error)}
    logging.getLogger(__name__).error("a request failed by a defect", exc_info=error)
    return {"code": "defect", "message": f"{type(error).__name__}: {error}"}
