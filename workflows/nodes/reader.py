"""Reading passages once and answering from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from agents.reader import cited, reading_prompt
from inference import Capability
from workflows.nodes.base import Node, NodeContext, State
from workflows.operators import kind

ADAPTER = "reader-default"
"""The shipped adapter that answers are read with, where it was trained on the engine's model."""

TEXTS = ("title", "text")
"""Keys that a passage must have."""
KEYS: dict[str, type] = {
    **dict.fromkeys((*TEXTS, "id", "document_id", "source"), str),
    **dict.fromkeys(("start", "end"), int),
    "score": float,
}
"""Types of the keys of a passage that mean something; others are handed through."""


def _passage(value: object) -> object:
    """The passage, if it can be read and cited."""
    if not isinstance(value, Mapping):
        wrong = [f"it is {kind(value)}"]
    else:
        wrong = [f"{key!r} is missing" for key in TEXTS if key not in value]
        wrong += [
            f"{key!r} is {kind(value[key])}"
            for key, wanted in KEYS.items()
            if key in value and not _fits(value[key], wanted)
        ]
    if wrong:
        raise PydanticCustomError(
            "passage",
            "no passage ({wrong}); give an object with the texts 'title' and 'text', "
            "as `retrieve` finds them",
            {"wrong": ", ".join(wrong)},
        )
    return value


def _fits(value: object, wanted: type) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool)
    return number if wanted is int else isinstance(value, wanted) or (wanted is float and number)


Passage = Annotated[dict[str, Any], BeforeValidator(_passage)]


def cite(passage: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The passage as a citation; one that names no source is a source of its own, unscored (0)."""
    own = {"id": f"given#{number}", "document_id": "", "source": "given", "score": 0.0}
    return {**own, "start": 0, "end": len(passage["text"]), **passage}


class ReaderAnswer(Node):
    """Answers the question from the given passages in one generation and cites them all.

    A passage is an object with the texts `title` and `text`; hits of `retrieve` are such objects.

    With `trained`, the shipped adapter is used where it was trained on the engine's model; its
    answers name the passage they rest on, which `cited` then tells of each citation.
    """

    question: str = Field(min_length=1)
    passages: list[Passage]
    max_tokens: int = Field(default=64, ge=1)
    trained: bool = False

    writes: ClassVar[dict[str, str]] = {
        "answer": "the answer",
        "citations": "the passages it was given",
    }
    generates: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CHAT})

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The answer and its citations."""
        trained = ADAPTER if self.trained and await context.equipped(ADAPTER) else None
        prompt = reading_prompt(self.question, self.passages)
        output = await context.generate(prompt, max_tokens=self.max_tokens, trained=trained)
        text = output.text.strip()
        context.note(text=text, finish_reason=output.finish_reason.value, adapter=trained)
        read = [cite(passage, place) for place, passage in enumerate(self.passages, start=1)]
        if trained is None:
            return {"answer": text, "citations": read}
        answer, number = cited(text, len(read))
        citations = [
            {**passage, "cited": place == number} for place, passage in enumerate(read, start=1)
        ]
        return {"answer": answer, "citations": citations}
