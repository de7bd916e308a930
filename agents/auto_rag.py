"""Auto-RAG: the model decides in a dialogue when and what to retrieve.

Source: Yu, Zhang, Feng, "Auto-RAG: Autonomous Retrieval-Augmented Generation for Large Language
Models", arXiv 2411.19443, Algorithm 2, and the authors' released code. No rule, score or classifier
decides to stop: the decision is text that the model writes.

Deviations from the released code, each visible in the result:
- Repeat guard: a query that was asked before forces the parametric phase, because a small model
  repeats itself until the rounds are used up.
- A marker with nothing behind it counts as malformed: there is nothing to search or to answer.
- When no unseen passage is left, the parametric phase begins.
- Of a round's passages the last is searched for with question and refined query together, as
  Iter-RetGen does (Shao et al., arXiv 2305.15294): what a small model's query leaves out is in the
  question. Input `passages_with_question` says how many; 0 is the paper's way.
- The passages of a round are joined by line breaks, not blanks: a small model tells them apart.
- `demonstrations` may show the format to a model that was not trained for it; the paper's trained
  model uses none, and so does the default model with the shipped adapter.
- An answer reached in the parametric phase is returned (the released code returns an empty text).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agents.prompts import fill, load_prompts
from inference import Message

DENSE_TAG = "[Dense]"


class Action(StrEnum):
    """What a turn of the model asks for."""

    RETRIEVE = "retrieve"
    ANSWER = "answer"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Turn:
    """A parsed assistant turn; `text` is the query or the answer, empty when malformed."""

    action: Action
    text: str
    reasoning: str


def parse_turn(turn: str) -> Turn:
    """Read the action of a turn: a query marker first, then a final answer, else malformed.

    The query is everything after the last "Query:" (any case), the answer everything after the
    last "Final Answer" and its colon (sheet of Algorithm 2, step 3).
    """
    query = _after_last(r"query:", turn)
    if query is not None:
        reasoning, text = query
        text = text.replace(DENSE_TAG, "").strip()
        return Turn(Action.RETRIEVE if text else Action.MALFORMED, text, reasoning)
    answer = _after_last(r"final answer\s*:?", turn)
    if answer is not None:
        reasoning, text = answer
        return Turn(Action.ANSWER if text else Action.MALFORMED, text, reasoning)
    return Turn(Action.MALFORMED, "", turn.strip())


def _after_last(marker: str, turn: str) -> tuple[str, str] | None:
    """Text before the line of the last marker, and text after the marker."""
    found = list(re.finditer(marker, turn, re.IGNORECASE))
    if not found:
        return None
    last = found[-1]
    line = turn.rfind("\n", 0, last.start()) + 1
    return turn[:line].strip(), turn[last.end() :].strip()


def opening(question: str, demonstrations: int) -> list[Message]:
    """The dialogue before the first turn: system, demonstrations, question."""
    prompts = load_prompts("auto_rag")
    shown = prompts["demonstrations"][:demonstrations]
    return [
        Message("system", prompts["system"]),
        *(Message(**message) for dialogue in shown for message in dialogue),
        Message("user", fill(prompts["question"], question=question)),
    ]


def document_turn(number: int, passages: Sequence[Mapping[str, Any]]) -> Message:
    """One user turn that holds the passages of a round, each on lines of its own, titles kept."""
    texts = "\n".join(titled(passage) for passage in passages)
    return _document(number, texts)


def titled(passage: Mapping[str, Any]) -> str:
    """A passage behind its title, without the heading that says the title again."""
    title, text = passage["title"], passage["text"]
    return f"{title}: {text.lstrip('# ').removeprefix(title).lstrip()}"


def parametric_turn(number: int, passage: str) -> Message:
    """A passage that the model wrote from memory, appended exactly like a retrieved one."""
    return _document(number, passage)


def _document(number: int, passages: str) -> Message:
    prompt = load_prompts("auto_rag")["document"]
    return Message("user", fill(prompt, number=str(number), passages=passages))


def elicitation(question: str, query: str) -> str:
    """The completion prompt, with four demonstrations, that asks for a passage from memory."""
    return fill(load_prompts("auto_rag")["elicit"], question=question, query=query)


def closing(question: str) -> list[Message]:
    """The bare question, without retrieval: the last resort (paper, Algorithm 2)."""
    return [Message("user", fill(load_prompts("auto_rag")["closing"], question=question))]


def is_repeat(query: str, asked: Collection[str]) -> bool:
    """True if a query equals an earlier one but for case and spacing."""
    return _plain(query) in {_plain(earlier) for earlier in asked}


def supports(passage: str, answer: str) -> bool:
    """True if the answer's words stand in the passage, in order, but for case and punctuation."""
    return bool(_plain(answer)) and f" {_plain(answer)} " in f" {_plain(passage)} "


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
