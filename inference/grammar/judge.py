"""Whether a text that somebody else generated belongs to its grammar; no model is needed."""

from __future__ import annotations

from typing import Any

import xgrammar as xg

from inference.grammar.compiler import SECONDS, Compiler
from inference.grammar.matcher import Matcher

_BYTES = 256


class Judge(Compiler):
    """Compiles over single bytes; blanks between the parts of a JSON text are allowed."""

    any_whitespace = True

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__(None, _BYTES + 1, {_BYTES}, seconds)

    def _vocabulary(self) -> Any:
        spelt = [bytes([byte]) for byte in range(_BYTES)]
        return xg.TokenizerInfo(
            [*spelt, b"</s>"],
            xg.VocabType.RAW,
            vocab_size=self.width,
            stop_token_ids=sorted(self.stop_ids),
        )


def verdict(matcher: Matcher, text: str) -> dict[str, Any]:
    """What an output says about its grammar, given a fresh matcher of a Judge."""
    if matcher.kind == "json_schema":
        text = text.strip(" \t\r\n")
    return {"kind": matcher.kind, "complete": matcher.read(text) and matcher.complete}
