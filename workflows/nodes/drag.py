"""DRAG as a node: one call over documents and demonstrations; the method is in `agents.drag`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from agents import drag
from inference import Message, Output
from inference.errors import PromptTooLong
from workflows.nodes.base import Node, NodeContext, State


class DRAGAnswer(Node):
    """Answers from the passages (best first) behind `demonstrations` solved questions.

    `pool` holds demonstrations in place of the shipped ones. With `chat` the prompt is one message
    of a user under the model's chat template, else it is completed as it stands. A prompt beyond
    the model's context is refused (`beyond_window`).
    """

    question: str = Field(min_length=1)
    passages: list[dict[str, Any]] = []
    k: int = Field(ge=0)
    demonstrations: int = Field(default=0, ge=0)
    pool: list[dict[str, Any]] | None = None
    chat: bool = False
    max_tokens: int = Field(default=64, ge=1)

    writes: ClassVar[dict[str, str]] = {
        "answer": "the answer",
        "citations": "the passages it was given, best first",
        "effective_context_length": "input tokens of the call",
        "calls": "calls of the model: one",
    }
    generates: ClassVar[bool] = True

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The answer and what it cost."""
        given = drag.demonstrations(self.k, self.demonstrations, self.pool or ())
        prompt = drag.drag_prompt(self.question, self.passages, given)
        output = await ask(
            context,
            prompt,
            self.max_tokens,
            (self.k, self.demonstrations, 1),
            chat=self.chat,
            stop=("\n",),
        )
        note(context, output, given)
        context.note(text=output.text.strip())
        return {
            "answer": output.text.strip(),
            "citations": self.passages,
            "effective_context_length": output.usage.prompt_tokens,
            "calls": 1,
        }


async def ask(
    context: NodeContext,
    prompt: str,
    max_tokens: int,
    theta: tuple[int, int, int],
    *,
    chat: bool,
    stop: tuple[str, ...] = (),
) -> Output:
    """One generation; raises BeyondWindow, which names theta, if the prompt does not fit."""
    try:
        asked = [Message("user", prompt)] if chat else prompt
        return await context.generate(asked, max_tokens=max_tokens, stop=stop)
    except PromptTooLong as error:
        k, m, n = theta
        raise drag.refused(error, k=k, m=m, n=n) from None


def note(context: NodeContext, output: Output, given: list[drag.Demonstration]) -> None:
    """Tell the trace what the call read; prefixes from the cache are counted in full."""
    context.note(
        input_tokens=output.usage.prompt_tokens,
        demonstrations=len(given),
        demonstration_documents=[len(each.documents) for each in given],
        finish_reason=output.finish_reason.value,
    )
