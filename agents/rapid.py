"""RAPID: the target reads a long context, its drafter only what of it was retrieved.

Source: Chen et al., "Long-Context Inference with Retrieval-Augmented Speculative Decoding", arXiv
2502.20330, section 3.1; drafting and acceptance are in `inference.speculative.rapid`.

Deviations:
- Chunks are the passages of the index: at most 254 tokens of MiniLM, cut at paragraphs, then lines
  and sentences, then spaces, with an overlap that is taken out again where neighbours are joined;
  the paper cuts at 512 tokens of the target's tokenizer, at clauses too, without overlap.
- Similarity is that of MiniLM instead of BGE-M3.
- The lower bound of the draft context is an option; 4096 tokens, the paper's, would be half of the
  default model's context.
- The gate on the best similarity is not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.prompts import fill, load_prompts
from inference import Message

Passage = Mapping[str, Any]
"""A hit as a citation: `document_id`, `title`, `start`, `end`, `text`, `score`, and more."""

GAP = "\n\n"
"""Between passages that do not follow each other."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a context may hold, in tokens of the target.

    `context` is the most that the target reads. The drafter reads `least` tokens, or the
    `shorten`-th part of what the target reads where that is more; passages of a similarity under
    `threshold` never, and nothing at all where the best one is under `gate`.
    """

    context: int
    least: int
    shorten: int
    threshold: float
    gate: float

    def draft(self, tokens: int) -> int:
        """Most tokens of a draft context for a long context of `tokens`."""
        return max(math.ceil(tokens / self.shorten), min(self.least, tokens))


@dataclass(frozen=True, slots=True)
class Selection:
    """What target and drafter read, each in document order.

    `confidence` is the best similarity, None without passages; `fallback` says why no drafter
    should read the excerpt, and is None where one should.
    """

    context: list[Passage]
    excerpt: list[Passage]
    context_tokens: int
    excerpt_tokens: int
    confidence: float | None
    fallback: str | None


def select(hits: Sequence[Passage], count: Callable[[str], int], bounds: Bounds) -> Selection:
    """The long context and the draft context from ranked passages; `count` counts tokens."""
    ranked = sorted(_distinct(hits), key=lambda hit: -hit["score"])
    context, context_tokens = _within(ranked, count, bounds.context)
    best = ranked[0]["score"] if ranked else None
    near = [hit for hit in ranked if hit["score"] >= bounds.threshold]
    room = bounds.draft(context_tokens)
    excerpt, excerpt_tokens = _within(near, count, room)
    fallback = None
    if best is None:
        fallback = "the search found no passage"
    elif not near or best < bounds.gate:
        needed = max(bounds.threshold, bounds.gate)
        fallback = f"the most similar passage has a similarity of {best:.2f}, under {needed:.2f}"
    elif not excerpt:
        fallback = f"no similar passage fits into a draft context of {room} tokens"
    elif excerpt_tokens >= context_tokens:
        fallback = (
            f"the context of {context_tokens} tokens is no longer than the draft context of "
            f"{excerpt_tokens}"
        )
    return Selection(context, excerpt, context_tokens, excerpt_tokens, best, fallback)


def _distinct(hits: Sequence[Passage]) -> list[Passage]:
    """Each place of a document once, at its first mention."""
    places: dict[tuple[Any, ...], Passage] = {}
    for hit in hits:
        places.setdefault((hit["document_id"], hit["start"], hit["end"]), hit)
    return list(places.values())


def _within(
    ranked: Sequence[Passage], count: Callable[[str], int], most: int
) -> tuple[list[Passage], int]:
    """The best passages that together take at most `most` tokens, in document order; how many."""
    chosen: list[Passage] = []
    left = most
    for hit in ranked:
        size = count(hit["text"])
        if size > left:
            break
        chosen.append(hit)
        left -= size
    return sorted(chosen, key=lambda hit: (hit["document_id"], hit["start"])), most - left


def joined(passages: Sequence[Passage]) -> str:
    """Passages in document order as one text: what overlaps stands once, gaps are blank lines.

    Where they are of several documents, each document begins with its title.
    """
    several = len({passage["document_id"] for passage in passages}) > 1
    parts: list[str] = []
    document, end = None, 0
    for passage in passages:
        text = passage["text"]
        if passage["document_id"] != document:
            document, end = passage["document_id"], 0
            parts.append((GAP if parts else "") + (f"{passage['title']}\n" if several else ""))
            parts.append(text)
        elif passage["start"] < end:
            parts.append(text[end - passage["start"] :])
        else:
            parts.append(GAP + text)
        end = max(end, passage["end"])
    return "".join(parts)


def prompt(question: str, passages: Sequence[Passage]) -> list[Message]:
    """The dialogue that asks `question` about passages: target and drafter get the same words."""
    prompts = load_prompts("rapid")
    return [
        Message("system", prompts["system"]),
        Message("user", fill(prompts["question"], text=joined(passages), question=question)),
    ]
