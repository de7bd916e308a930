"""Early bounds on the text of a regular expression or EBNF, before the compiler sees it."""

from __future__ import annotations

import re
from typing import Literal

from inference.errors import GrammarInputError

MAX_NESTING = 64
"""Deepest nesting of brackets: the compiler descends on the stack of the process."""
MAX_REPEATS = 100_000
"""Largest number inside a repetition {m,n}."""

_REPEAT = re.compile(r"\{\s*([0-9]*)\s*,?\s*([0-9]*)\s*\}")
_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|#[^\n]*')
_REGEX_LITERALS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def bare(kind: Literal["regex", "ebnf"], source: str) -> str:
    """The text with literals and character classes blanked out, positions kept."""
    pattern = _REGEX_LITERALS if kind == "regex" else _LITERALS
    return pattern.sub(lambda match: "~" * len(match[0]), source)


def check_brackets(kind: Literal["regex", "ebnf"], source: str) -> None:
    """Refuse brackets nested too deeply, and anchors inside a regex."""
    depth = 0
    for at, character in enumerate(bare(kind, source)):
        depth += (character == "(") - (character == ")")
        if depth > MAX_NESTING:
            raise GrammarInputError(
                f"the {kind} grammar nests brackets more than {MAX_NESTING} deep at character "
                f"{at}; make it flatter"
            )
    if kind == "regex":
        _check_anchors(source)


def _check_anchors(source: str) -> None:
    """The compiler skips an anchor inside the pattern, which would change what it matches."""
    text = bare("regex", source)
    for at, character in enumerate(text):
        if (character == "^" and at > 0) or (character == "$" and at < len(text) - 1):
            raise GrammarInputError(
                f"the regex has the anchor {character!r} at character {at}; anchors may stand at "
                "its two ends only, and the whole answer is matched without them"
            )


def check_repetition(kind: Literal["regex", "ebnf"], source: str) -> None:
    """Refuse huge counts, and repetitions that end before they begin."""
    for match in _REPEAT.finditer(bare(kind, source)):
        counts = [text for text in match.groups() if text]
        if any(len(text) > 9 or int(text) > MAX_REPEATS for text in counts):
            raise GrammarInputError(
                f"the {kind} grammar repeats {match[0]} times at character {match.start()}; "
                f"use at most {MAX_REPEATS}, or no upper limit"
            )
        if len(counts) == 2 and int(counts[0]) > int(counts[1]):
            raise GrammarInputError(
                f"the {kind} grammar repeats {match[0]} times at character {match.start()}; "
                "put the smaller number first"
            )


def spell_dots(pattern: str, characters: str) -> str:
    """The regex with the class `characters` for every dot that stands for any character."""
    text = bare("regex", pattern)
    return "".join(
        characters if mark == "." else given for mark, given in zip(text, pattern, strict=True)
    )
