"""Retrieval inside a generation: a watched answer that goes back to where it should search.

The passages stand before the question, so that what was read of the prompt is read again behind
them; the tokens of the answer that are kept go on as if they had been written there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents.atlas import grounded, query_prompt, settled
from agents.watching import Judge, Place, Trigger
from inference import FinishReason, Message, Output, Request, SamplingParams, Usage
from inference.engine import Watchable
from inference.errors import PromptTooLong
from inference.requests import Stats
from inference.watched import Watched
from workflows.events import TextDelta
from workflows.meter import BudgetExhausted

if TYPE_CHECKING:
    from workflows.context import StepContext

Prompt = Sequence[Message] | str


class Triggered:
    """One answer of a node with a trigger: what is kept of it, and the passages found for it."""

    def __init__(
        self,
        context: StepContext,
        trigger: Trigger,
        asked: Prompt,
        params: SamplingParams,
        trained: str | None,
    ) -> None:
        self._context = context
        self._trigger = trigger
        self._asked = asked
        self._params = params
        self._trained = trained
        self.kept: list[int] = []
        self.passages: list[dict[str, Any]] = []
        self.searches: list[dict[str, Any]] = []
        self.short: str | None = None
        """Why it searches no more, where something ran out."""

    async def write(self) -> tuple[str, FinishReason]:
        """The whole answer, cut at the first stop string, and how it ended.

        Tokens or a context that run out end it as they end a plain generation.
        """
        model = await self._context.watched_model()
        judge = self._trigger.watching(model.model, model.weights_digest)
        judged = 0  # of the next tokens: 1 behind a search, whose token is not judged again
        while True:
            room = self._params.max_tokens - len(self.kept)
            asked = min(self._trigger.window, room)
            try:
                seen = await self._segment(model, asked, judge)
            except (BudgetExhausted, PromptTooLong):
                if not self.kept:
                    raise
                return model.decode(self.kept), FinishReason.LENGTH
            stopped = seen.finish_reason is not FinishReason.LENGTH
            ended = stopped or len(seen.produced) < asked or asked == room
            end = len(seen.ids) if ended else settled(seen)
            span = seen.ids[seen.start : end]
            said = _before_stop(model, self.kept, span, self._params.stop)
            found = await self._found(seen, seen.start + judged, seen.start + said, judge)
            if found is not None and await self._search(model, seen, found, judge):
                judged = 1
                continue
            self.kept += span
            judged = 0
            if said < len(span):
                return _cut(model.decode(self.kept), self._params.stop), FinishReason.STOP_STRING
            if ended:
                return model.decode(self.kept), seen.finish_reason

    async def _segment(self, model: Watchable, tokens: int, judge: Judge) -> Watched:
        """The next tokens behind those that are kept, over the passages found so far."""
        return await self._context.watch(
            grounded(self._asked, self.passages),
            kept=self.kept,
            max_tokens=tokens,
            weights=judge.weights(model.layers),
            trained=self._trained,
        )

    async def _found(self, seen: Watched, first: int, end: int, judge: Judge) -> Place | None:
        """The first token of a segment that asks for a search which there is means for."""
        late = seen.finish_reason is FinishReason.DEADLINE
        if self.short or late or len(self.searches) == self._trigger.most:
            return None
        return await asyncio.to_thread(judge.place, seen, first, end, len(self.kept))

    async def _search(self, model: Watchable, seen: Watched, found: Place, judge: Judge) -> bool:
        """Search for what the context of a token asks, and keep what stands before it.

        False, with nothing changed, where the budget allows no query or no search.
        """
        words = await asyncio.to_thread(judge.words, seen, found.position)
        query = " ".join(words)
        try:
            if judge.query_tokens:
                written = await self._context.aside(
                    query_prompt(words), judge.query_tokens, ("\n",)
                )
                query = written.strip() or query
            [hits] = await self._context.search(
                [query], self._trigger.k, exclude=[one["id"] for one in self.passages]
            )
        except BudgetExhausted as error:
            self.short = str(error)
            return False
        self.kept += seen.ids[seen.start : found.position]
        read = [hit.citation() for hit in hits]
        while read and not self._fit(model, read):
            read.pop()
        if len(read) < len(hits):
            self.short = f"the context of {model.context_length} tokens holds no more passages"
        self.passages += read
        self.searches.append(
            {
                "at": len(self.kept),
                "token": seen.pieces[found.position],
                "probability": round(found.probability, 4),
                "mlag": None if found.mlag is None else float(f"{found.mlag:.4g}"),
                "words": words,
                "query": query,
                "passages": [one["id"] for one in read],
            }
        )
        return True

    def _fit(self, model: Watchable, read: Sequence[dict[str, Any]]) -> bool:
        """Whether the answer has room behind these passages too."""
        asked = grounded(self._asked, [*self.passages, *read])
        text = isinstance(asked, str)
        request = Request(prompt=asked) if text else Request(messages=asked)  # type: ignore[arg-type]
        return len(model.encode(request)) + self._params.max_tokens <= model.context_length


async def triggered(
    context: StepContext,
    trigger: Trigger,
    prompt: Prompt,
    params: SamplingParams,
    trained: str | None,
) -> Output:
    """A generation of the node that searches where its trigger says so.

    The notes of the step hold `trigger`: its searches, with token, words, query and passages, and
    `short` where something ran out. The output's notes hold the passages themselves too. It is
    streamed in one piece, since what was written may have been taken back.
    """
    before = context.usage.to_dict()
    writing = Triggered(context, trigger, prompt, params, trained)
    text, reason = await writing.write()
    if context.scope.stream_text and text:
        context.scope.emit(TextDelta(context.scope.path + context.node, text))
    told = {"searches": writing.searches, **({"short": writing.short} if writing.short else {})}
    context.note(trigger=told)
    spent = {name: value - before[name] for name, value in context.usage.to_dict().items()}
    return Output(
        f"{context.task}-triggered",
        text,
        tuple(writing.kept),
        reason,
        Usage(**spent),  # type: ignore[arg-type]
        Stats(),
        {"trigger": {**told, "passages": writing.passages}},
    )


def _before_stop(
    model: Watchable, kept: Sequence[int], span: Sequence[int], stop: Sequence[str]
) -> int:
    """How many tokens of a span stand before the one that completes a stop string; all without."""
    for count in range(1, len(span) + 1) if stop else ():
        text = model.decode([*kept, *span[:count]])
        if any(one in text for one in stop):
            return count - 1
    return len(span)


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings that stands in it."""
    return text[: min(place for one in stop if (place := text.find(one)) >= 0)]
