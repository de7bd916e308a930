"""Reading passages once and answering from them."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from agents.reader import reading_prompt
from inference import Capability
from workflows.nodes.base import Node, NodeContext, State


class ReaderAnswer(Node):
    """Answers the question from the given passages in one generation and cites them all."""

    question: str = Field(min_length=1)
    passages: list[dict[str, Any]]
    max_tokens: int = Field(default=64, ge=1)

    writes: ClassVar[dict[str, str]] = {
        "answer": "the answer",
        "citations": "the passages it was given",
    }
    generates: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CHAT})

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The answer and its citations."""
        output = await context.generate(
            reading_prompt(self.question, self.passages), max_tokens=self.max_tokens
        )
        context.note(text=output.text.strip(), finish_reason=output.finish_reason.value)
        return {"answer": output.text.strip(), "citations": self.passages}
