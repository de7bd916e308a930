"""One-shot reading: numbered passages, then the question (the naive RAG baseline)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents.prompts import fill, load_prompts
from inference import Message

CITED = re.compile(r"\s*\[(\d+)\]\s*$")


def cited(text: str, passages: int) -> tuple[str, int | None]:
    """An answer without the `[number]` behind it, and the number if a passage has it."""
    found = CITED.search(text)
    if found is None:
        return text.strip(), None
    number = int(found[1])
    return text[: found.start()].strip(), number if 1 <= number <= passages else None


def reading_prompt(question: str, passages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The dialogue that asks for a short answer from the passages, numbered from 1."""
    prompts = load_prompts("reader")
    shown = "\n".join(
        fill(prompts["passage"], number=str(number), title=p["title"], text=p["text"])
        for number, p in enumerate(passages, start=1)
    )
    return [
        Message("system", prompts["system"]),
        Message("user", fill(prompts["question"], passages=shown, question=question)),
    ]
