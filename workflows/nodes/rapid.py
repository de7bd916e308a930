"""RAPID as nodes: select what target and drafter read, and answer.

The method is in `agents.rapid` and `inference.speculative.rapid`; the order is in
`library/rapid.yaml`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from agents import rapid
from inference import Capability
from workflows.nodes.base import Node, NodeContext, State


class RapidSelect(Node):
    """Makes a long context and a draft context, both in document order, from ranked passages.

    The long context holds the best passages up to `context_tokens`, which is all of a document that
    fits. The draft context holds the best ones of a similarity of at least `threshold`, up to
    `draft_tokens`, or the `shorten`-th part of the long context where that is more.
    """

    hits: list[dict[str, Any]]
    context_tokens: int = Field(default=7000, ge=1)
    draft_tokens: int = Field(default=512, ge=1)
    shorten: int = Field(default=24, ge=1)
    threshold: float = Field(default=0.3, ge=0, le=1)
    gate: float = Field(default=0.0, ge=0, le=1)

    writes: ClassVar[dict[str, str]] = {
        "context": "passages that the target reads, in document order",
        "excerpt": "those of them that the drafter reads, in document order",
        "drafts": "true if a drafter should read the excerpt",
        "fallback": "why none should, or null",
    }
    generates: ClassVar[bool] = True

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """Both contexts."""
        texts = [hit["text"] for hit in self.hits]
        sizes = dict(zip(texts, await context.count(texts), strict=True))
        bounds = rapid.Bounds(
            self.context_tokens, self.draft_tokens, self.shorten, self.threshold, self.gate
        )
        chosen = rapid.select(self.hits, sizes.__getitem__, bounds)
        context.note(
            passages=len(self.hits),
            left_out=len(self.hits) - len(chosen.context),
            context_tokens=chosen.context_tokens,
            excerpt=[hit["id"] for hit in chosen.excerpt],
            excerpt_tokens=chosen.excerpt_tokens,
            confidence=chosen.confidence,
            **({} if chosen.fallback is None else {"fallback": chosen.fallback}),
        )
        return {
            "context": [dict(hit) for hit in chosen.context],
            "excerpt": [dict(hit) for hit in chosen.excerpt],
            "drafts": chosen.fallback is None,
            "fallback": chosen.fallback,
        }


class RapidAnswer(Node):
    """Answers from the passages `context`; the node's drafter reads `excerpt` in their place.

    It cites the excerpt, or without one the context. With `drafts` false there is no draft prompt.
    """

    question: str = Field(min_length=1)
    context: list[dict[str, Any]]
    excerpt: list[dict[str, Any]] = []
    drafts: bool = True
    max_tokens: int = Field(default=96, ge=1)

    writes: ClassVar[dict[str, str]] = {
        "answer": "the answer",
        "citations": "the passages it rests on",
        "decoding": "`rapid` if a drafter took part, else `plain`",
    }
    generates: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CHAT})

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The answer and its citations."""
        draft = rapid.prompt(self.question, self.excerpt) if self.drafts and self.excerpt else None
        output = await context.generate(
            rapid.prompt(self.question, self.context),
            max_tokens=self.max_tokens,
            draft_prompt=draft,
        )
        context.note(text=output.text.strip(), finish_reason=output.finish_reason.value)
        return {
            "answer": output.text.strip(),
            "citations": self.excerpt or self.context,
            "decoding": "rapid" if "drafter" in output.notes else "plain",
        }
