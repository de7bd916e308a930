"""DRAG and IterDRAG: a budget of input tokens spent on documents, demonstrations and iterations.

Source: Yue et al., "Inference Scaling for Long-Context Retrieval Augmented Generation", arXiv
2410.04343 (ICLR 2025), sections 3.1 to 3.3 and appendix H. No official code is known. theta is
(k, m, n): documents per search, demonstrations, iterations.

Deviations:
- Documents are passages of the index, each on one line behind its title, with white space
  collapsed; the paper cuts Wikipedia documents at 1,024 words. The retriever is the workflow's.
- The prompt is a text to be completed, or with `chat` one message; the paper's is a chat model.
- An answer of DRAG ends with its line, as a plain completion would go on with another question.
- IterDRAG offers only the kinds of line that can stand at a place: an intermediate answer behind a
  follow-up question and nowhere else. The paper leaves the place to the model.
- The shipped demonstrations are invented, and hold at most five documents a search whatever k is;
  those built with the user's retriever hold k.
- Decoding is greedy unless the workflow file says otherwise.

Not verified: how many documents the paper fetches for a sub-question (here k; those that stand in
the block already are not repeated), and the words of its instructions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from agents.auto_rag import titled
from agents.prompts import fill, load_prompts
from inference.errors import InferenceError, InferenceInputError, PromptTooLong

Passage = Mapping[str, Any]
"""A document: at least `title` and `text`."""


class BeyondWindow(PromptTooLong):
    """A theta whose prompt does not fit the model's context; documents are never cut."""

    code = "beyond_window"


class DemonstrationError(InferenceInputError):
    """Demonstrations that cannot be read, or fewer than were asked for."""

    code = "bad_demonstrations"


class UnfinishedLine(InferenceError):
    """A line that was cut before its prefix was complete."""

    code = "unfinished_line"


class Kind(StrEnum):
    """What a line of IterDRAG is."""

    FOLLOW_UP = "follow_up"
    INTERMEDIATE = "intermediate"
    FINAL = "final"


PREFIXES = {
    Kind.FOLLOW_UP: "Follow up:",
    Kind.INTERMEDIATE: "Intermediate answer:",
    Kind.FINAL: "So the final answer is:",
}
"""How the lines begin (Self-Ask)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration: the sub-question, what was found for it (best first), its answer if given."""

    question: str
    documents: tuple[Passage, ...]
    answer: str | None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A solved question: its documents (best first), the iterations, and the final answer."""

    question: str
    documents: tuple[Passage, ...]
    steps: tuple[Step, ...]
    answer: str


def line(kind: Kind, text: str) -> str:
    """A line of IterDRAG, without its end."""
    return f"{PREFIXES[kind]} {_flat(text)}"


def parse_line(text: str) -> tuple[Kind, str]:
    """Kind and content of a generated line; raises UnfinishedLine if it has no prefix."""
    for kind, prefix in PREFIXES.items():
        if text.startswith(prefix):
            return kind, _flat(text.removeprefix(prefix))
    raise UnfinishedLine(
        f"the line {text!r} begins with none of {', '.join(map(repr, PREFIXES.values()))}; raise "
        "max_tokens, or give the node a grammar of these lines"
    )


def shown(searches: Iterable[Sequence[Passage]]) -> list[Passage]:
    """The document block: each search in reversed rank order, best last; nothing stands twice."""
    block: list[Passage] = []
    seen: set[tuple[str, str]] = set()
    for ranked in searches:
        fresh = []
        for passage in ranked:
            key = (passage["title"], passage["text"])
            if key not in seen:
                seen.add(key)
                fresh.append(passage)
        block += reversed(fresh)
    return block


def drag_prompt(question: str, documents: Sequence[Passage], given: Sequence[Demonstration]) -> str:
    """The prompt of DRAG; `documents` are best first, and the demonstrations hold theirs."""
    parts = [_part([each.documents], each.question) + f" {_flat(each.answer)}" for each in given]
    return "\n\n".join([load_prompts("drag")["drag"], *parts, _part([documents], question)])


def iter_drag_prompt(
    question: str,
    documents: Sequence[Passage],
    steps: Sequence[Step],
    given: Sequence[Demonstration],
) -> str:
    """The prompt of the next line of IterDRAG, behind the lines of the steps so far.

    What the follow-up questions found stands in the document block, not between the lines.
    """
    parts = [
        "\n".join(
            [
                _part([each.documents, *(step.documents for step in each.steps)], each.question),
                *_lines(each.steps),
                line(Kind.FINAL, each.answer),
            ]
        )
        for each in given
    ]
    test = _part([documents, *(step.documents for step in steps)], question)
    whole = "\n\n".join([load_prompts("drag")["iter_drag"], *parts, test])
    return "\n".join([whole, *_lines(steps), ""])


def _part(searches: Iterable[Sequence[Passage]], question: str) -> str:
    """Documents, question and answer label, the same in demonstrations and test."""
    prompts = load_prompts("drag")
    block = [_flat(titled(passage)) for passage in shown(searches)]
    asked = fill(prompts["question"], question=_flat(question))
    return "\n".join([*([prompts["documents"], *block] if block else []), asked, prompts["answer"]])


def _lines(steps: Sequence[Step]) -> list[str]:
    found = []
    for step in steps:
        found.append(line(Kind.FOLLOW_UP, step.question))
        if step.answer is not None:
            found.append(line(Kind.INTERMEDIATE, step.answer))
    return found


def _flat(text: str) -> str:
    return " ".join(text.split())


def demonstrations(k: int, m: int, pool: Sequence[Mapping[str, Any]] = ()) -> list[Demonstration]:
    """The first `m` of the pool (of the shipped ones without a pool), each search cut to k.

    Raises DemonstrationError if there are fewer than `m`.
    """
    every = [_read(each, at) for at, each in enumerate(pool, start=1)] if pool else list(_shipped())
    if m > len(every):
        whose = "the pool has" if pool else "there are shipped"
        raise DemonstrationError(
            f"m={m} demonstrations asked for, and {whose} {len(every)}; ask for fewer, or build "
            "more with `ragwright demonstrations` and give them as the input `pool`"
        )
    return [
        Demonstration(
            each.question,
            each.documents[:k],
            tuple(Step(s.question, s.documents[:k], s.answer) for s in each.steps),
            each.answer,
        )
        for each in every[:m]
    ]


@cache
def _shipped() -> tuple[Demonstration, ...]:
    found = []
    for at, each in enumerate(load_prompts("drag")["demonstrations"], start=1):
        texts = each["texts"]

        def named(titles: list[str], texts: Mapping[str, str] = texts) -> list[Passage]:
            return [{"title": title, "text": texts[title]} for title in titles]

        steps = [{**step, "documents": named(step["documents"])} for step in each["steps"]]
        full = {"question": each["question"], "answer": each["answer"], "steps": steps}
        found.append(_read({**full, "documents": named(each["documents"])}, at))
    return tuple(found)


def _read(value: Any, at: int) -> Demonstration:
    """One demonstration from plain values; raises DemonstrationError naming its number."""
    try:
        steps = tuple(
            Step(str(s["question"]), _documents(s["documents"]), str(s["answer"]))
            for s in value.get("steps", [])
        )
        documents = _documents(value["documents"])
        return Demonstration(str(value["question"]), documents, steps, str(value["answer"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise DemonstrationError(
            f"demonstration {at} of the pool cannot be read ({type(error).__name__}: {error}); it "
            "needs question, answer, documents (each with title and text) and steps (each with "
            "question, documents, answer)"
        ) from None


def _documents(values: Any) -> tuple[Passage, ...]:
    return tuple({"title": str(v["title"]), "text": str(v["text"])} for v in values)


def refused(error: PromptTooLong, *, k: int, m: int, n: int) -> BeyondWindow:
    """The refusal of a theta, from what the engine said about prompt and context."""
    return BeyondWindow(
        f"k={k}, m={m}, n={n} does not fit the model's context: {error}. Documents are never cut; "
        "lower k, m or n, or take a model with a longer context"
    )


def is_right(answer: str, golds: Iterable[str]) -> bool:
    """Exact match with any gold answer, but for case, punctuation, articles and spacing."""
    return _normal(answer) in {_normal(gold) for gold in golds}


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", re.sub(r"\b(a|an|the)\b", " ", text.casefold())))
