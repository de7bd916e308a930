"""Reading passages once and answering from them."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from agents.reader import cited, reading_prompt
from inference import Capability
from workflows.nodes.base import Node, NodeContext, State

ADAPTER = "reader-default"
"""The shipped adapter that answers are read with, where it was trained on the engine's model."""


class ReaderAnswer(Node):
    """Answers the question from the given passages in one generation and cites them all.

    With `trained`, the shipped adapter is used where it was trained on the engine's model; its
    answers name the passage they rest on, which `cited` then tells of each citation.
    """

    question: str = Field(min_length=1)
    passages: list[dict[str, Any]]
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
        if trained is None:
            return {"answer": text, "citations": self.passages}
        answer, number = cited(text, len(self.passages))
        citations = [
            {**passage, "cited": place == number}
            for place, passage in enumerate(self.passages, start=1)
        ]
        return {"answer": answer, "citations": citations}
