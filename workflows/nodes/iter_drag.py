"""IterDRAG as nodes: open, write one line, read what was found, conclude.

The method is in `agents.drag`; the order and the grammars are in `library/iter_drag.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from agents import drag
from agents.drag import Kind, Step
from workflows.nodes.base import Node, NodeContext, State
from workflows.nodes.drag import ask, note

CHAIN = "iterations: question, documents (best first), answer or null"


class IterDRAGOpen(Node):
    """Begins with the documents found for the question itself, best first."""

    hits: list[dict[str, Any]] = []

    writes: ClassVar[dict[str, str]] = {
        "documents": "what was found for the question, best first",
        "chain": CHAIN,
        "iteration": "iterations that are over",
        "kind": "kind of the last line; at first null",
        "query": "the last sub-question",
        "effective_context_length": "input tokens of all calls so far",
        "calls": "calls of the model so far",
    }

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The state before the first line."""
        return {
            "documents": self.hits,
            "chain": [],
            "iteration": 0,
            "kind": None,
            "query": "",
            "effective_context_length": 0,
            "calls": 0,
        }


class IterDRAGLine(Node):
    """Generates one line and reads what it is: follow_up, intermediate or final.

    With `chat` the prompt is one message of a user under the model's chat template, else it is
    completed as it stands. The node needs a grammar that allows lines of `agents.drag.PREFIXES`
    only. A prompt beyond the model's context is refused (`beyond_window`); a line that
    `max_tokens` cuts counts as it stands, and the trace says so (`finish_reason`).
    """

    question: str = Field(min_length=1)
    k: int = Field(ge=0)
    demonstrations: int = Field(default=0, ge=0)
    iterations: int = Field(default=5, ge=1)
    pool: list[dict[str, Any]] | None = None
    chat: bool = False
    max_tokens: int = Field(default=64, ge=32)

    reads: ClassVar[tuple[str, ...]] = (
        "documents",
        "chain",
        "iteration",
        "effective_context_length",
        "calls",
    )
    writes: ClassVar[dict[str, str]] = {
        "kind": "follow_up, intermediate or final",
        "query": "the sub-question, if this line asked one",
        "chain": CHAIN,
        "iteration": "iterations that are over",
        "answer": "the final answer, if this line gave one",
        "effective_context_length": "input tokens of all calls so far",
        "calls": "calls of the model so far",
    }
    generates: ClassVar[bool] = True

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """What the line adds to the chain."""
        given = drag.demonstrations(self.k, self.demonstrations, self.pool or ())
        steps = steps_of(state["chain"])
        prompt = drag.iter_drag_prompt(self.question, state["documents"], steps, given)
        theta = (self.k, self.demonstrations, self.iterations)
        output = await ask(context, prompt, self.max_tokens, theta, chat=self.chat)
        kind, text = drag.parse_line(output.text)
        note(context, output, given)
        context.note(kind=kind.value, text=text)
        update: dict[str, Any] = {
            "kind": kind.value,
            "effective_context_length": state["effective_context_length"]
            + output.usage.prompt_tokens,
            "calls": state["calls"] + 1,
        }
        chain = state["chain"]
        if kind is Kind.FOLLOW_UP:
            update["query"] = text
            update["chain"] = [*chain, {"question": text, "documents": [], "answer": None}]
        elif kind is Kind.INTERMEDIATE:
            update["chain"] = [*chain[:-1], {**chain[-1], "answer": text}]
            update["iteration"] = state["iteration"] + 1
        else:
            update["answer"] = text
        return update


class IterDRAGRead(Node):
    """Adds what was found for the last sub-question (best first) to the documents."""

    hits: list[dict[str, Any]]

    reads: ClassVar[tuple[str, ...]] = ("chain",)
    writes: ClassVar[dict[str, str]] = {"chain": CHAIN}

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The chain, its last iteration with documents."""
        chain = state["chain"]
        context.note(read=[hit["id"] for hit in self.hits])
        return {"chain": [*chain[:-1], {**chain[-1], "documents": self.hits}]}


class IterDRAGConclude(Node):
    """States the passages read, in the order of the block, and the run as a demonstration."""

    question: str = Field(min_length=1)

    reads: ClassVar[tuple[str, ...]] = ("answer", "documents", "chain", "iteration")
    writes: ClassVar[dict[str, str]] = {
        "citations": "the passages read, in the order of the document block",
        "demonstration": "question, documents, steps and answer, as `pool` takes them",
    }

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """Citations, and what a later prompt may show."""
        chain = state["chain"]
        searches = [state["documents"], *(step["documents"] for step in chain)]
        context.note(iterations=state["iteration"])
        return {
            "citations": [dict(passage) for passage in drag.shown(searches)],
            "demonstration": {
                "question": self.question,
                "documents": _bare(state["documents"]),
                "steps": [{**step, "documents": _bare(step["documents"])} for step in chain],
                "answer": state["answer"],
            },
        }


def steps_of(chain: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The chain of the state as the method's steps."""
    return [Step(each["question"], tuple(each["documents"]), each["answer"]) for each in chain]


def _bare(passages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"title": passage["title"], "text": passage["text"]} for passage in passages]
