"""Retrieval inside a generation: a watched answer that goes back to where it should search.

The passages stand before the question, so that what was read of the dialogue is read again behind
them; the tokens of the answer that are kept go on as if they had been written there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents.atlas import Trigger as Place
from agents.atlas import first_trigger, grounded, query_prompt, query_words, settled, state_weights
from agents.triggers import Atlas, Trigger
from inference import FinishReason, Message, Output, SamplingParams, Usage
from inference.requests import Stats
from inference.watched import Watched

if TYPE_CHECKING:
    from workflows.context import StepContext


class Triggered:
    """One answer of a node with a trigger: what is kept of it, and the passages found for it."""

    def __init__(
        self,
        context: StepContext,
        trigger: Atlas,
        dialogue: Sequence[Message],
        params: SamplingParams,
        trained: str | None,
    ) -> None:
        self._context = context
        self._trigger = trigger
        self._dialogue = list(dialogue)
        self._params = params
        self._trained = trained
        self.kept: list[int] = []
        self.passages: list[dict[str, Any]] = []
        self.searches: list[dict[str, Any]] = []

    async def write(self) -> tuple[str, FinishReason]:
        """The whole answer, cut at the first stop string, and how it ended."""
        model = await self._context.watched_model()
        when, what = self._trigger.watching(model.model, model.weights_digest)
        weights = list(state_weights(model.layers, what.layer_temperature))
        judged = 0  # tokens of the answer that were judged, and are not judged again
        while True:
            room = self._params.max_tokens - len(self.kept)
            seen = await self._context.watch(
                grounded(self._dialogue, self.passages),
                kept=self.kept,
                max_tokens=min(self._trigger.window, room),
                weights=weights,
                trained=self._trained,
            )
            ended = len(seen.produced) == room or seen.finish_reason is not FinishReason.LENGTH
            end = len(seen.ids) if ended else settled(seen)
            found = None
            if len(self.searches) < self._trigger.most:
                origin = seen.start - len(self.kept)
                found = first_trigger(seen, origin + judged, end, when)
            if found is not None:
                await self._search(found, query_words(seen, found.position, what), seen)
                judged = len(self.kept) + 1
                continue
            self.kept += seen.ids[seen.start : end]
            judged = max(judged, len(self.kept))
            text, cut = _cut(model.decode(self.kept), self._params.stop)
            if cut or ended:
                return text, FinishReason.STOP_STRING if cut else seen.finish_reason

    async def _search(self, found: Place, words: Sequence[str], seen: Watched) -> None:
        """Keep what stands before the token, and search for what its context asks."""
        self.kept += seen.ids[seen.start : found.position]
        written = await self._context.generate_plainly(
            query_prompt(words), max_tokens=self._trigger.query_tokens, stop=("\n",)
        )
        query = written.text.strip() or " ".join(words)
        [hits] = await self._context.search(
            [query], self._trigger.k, exclude=[one["id"] for one in self.passages]
        )
        self.passages += [hit.citation() for hit in hits]
        self.searches.append(
            {
                "at": len(self.kept),
                "token": seen.pieces[found.position],
                "probability": round(found.probability, 4),
                "mlag": float(f"{found.mlag:.4g}"),
                "words": list(words),
                "query": query,
                "passages": [hit.passage.id for hit in hits],
            }
        )


async def triggered(
    context: StepContext,
    trigger: Trigger,
    prompt: Sequence[Message] | str,
    params: SamplingParams,
    trained: str | None,
) -> Output:
    """A generation of the node that searches where its trigger says so.

    The notes of the step hold `trigger`: its searches, with token, words, query and passages. The
    output's notes hold the passages themselves too.
    """
    assert isinstance(trigger, Atlas), "the only row of its table"
    dialogue = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    before = context.usage.to_dict()
    writing = Triggered(context, trigger, dialogue, params, trained)
    text, reason = await writing.write()
    context.note(trigger={"searches": writing.searches})
    spent = {name: value - before[name] for name, value in context.usage.to_dict().items()}
    return Output(
        f"{context.task}-triggered",
        text,
        tuple(writing.kept),
        reason,
        Usage(**spent),  # type: ignore[arg-type]
        Stats(),
        {"trigger": {"searches": writing.searches, "passages": writing.passages}},
    )


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether there is one."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
