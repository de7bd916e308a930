"""Outputs of the engine in the words of the protocol."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference import FinishReason, Output
from inference.requests import TokenLogprob

FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "length",
}
"""How the protocol says why an answer ended; `ragwright.finish_reason` of a choice is exact."""


@dataclass(frozen=True)
class Envelope:
    """What every object of one answer begins with; `created` is seconds since the epoch."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, kind: str, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """An object of the protocol."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": list(choices), **more}


def usage(outputs: Sequence[Output], candidates: int) -> dict[str, Any]:
    """Tokens of an answer: a prompt counts once, whatever the number of its candidates."""
    firsts = outputs[::candidates]
    return tokens_used(
        sum(one.usage.prompt_tokens for one in firsts),
        sum(one.usage.completion_tokens for one in outputs),
        sum(one.usage.cached_tokens for one in firsts),
    )


def tokens_used(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """Counts of tokens; `cached` are those of the prompt that were not computed again."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def ending(output: Output) -> dict[str, Any]:
    """How a choice ended: in the protocol's words, in vLLM's, and exactly."""
    reason = output.finish_reason
    notes = dict(output.notes)
    if output.stats.truncated_tokens:
        notes["truncated_tokens"] = output.stats.truncated_tokens
    return {
        "finish_reason": FINISH[reason],
        "stop_reason": notes.pop("stop_string", None),
        "ragwright": {"finish_reason": reason.value, "notes": notes},
    }


def chat_logprobs(rows: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities as chat tells them; `bytes` is null for a part of a character."""
    content = [
        {**_token(row.text, row.logprob), "top_logprobs": [_token(*one) for one in row.top]}
        for row in rows
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(rows: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Log-probabilities as completions tell them; the text of the first begins at `offset`."""
    offsets = []
    for row in rows:
        offsets.append(offset)
        offset += len(row.text)
    return {
        "tokens": [row.text for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": [{row.text: row.logprob, **_first_of_each(row.top)} for row in rows],
        "text_offset": offsets,
    }


def _first_of_each(top: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The most probable of the tokens that are spelt alike."""
    found: dict[str, float] = {}
    for text, value in top:
        found.setdefault(text, value)
    return found


def _token(text: str, logprob: float) -> dict[str, Any]:
    whole = "\ufffd" not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}
