"""A grammar as a request carries it: its kind and its text, checked before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inference.errors import GrammarInputError
from inference.grammar.schema import lower
from inference.grammar.text import check_brackets, check_repetition, spell_dots

Kind = Literal["json_schema", "regex", "ebnf"]

MAX_CHARACTERS = 32_768
"""Longest text of a grammar."""

_ANY = "[\x01-\x09\x0b-\ud7ff\ue000-\U0010ffff]"
"""What a dot matches: any character but the end of a line; xgrammar's own takes half characters."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """The language of an answer; equal grammars compile once.

    `source` is the JSON text of a schema, a regular expression that the whole answer must match,
    or EBNF rules that start at `root`. Raises GrammarInputError for what cannot be held to.
    """

    kind: Kind
    source: str

    def __post_init__(self) -> None:
        if self.kind not in _CHECKS:
            raise GrammarInputError(
                f"grammar kind {self.kind!r} is unknown; use json_schema, regex or ebnf"
            )
        if not self.source.strip():
            raise GrammarInputError(f"the {self.kind} grammar is empty; write one out")
        if len(self.source) > MAX_CHARACTERS:
            raise GrammarInputError(
                f"the {self.kind} grammar has {len(self.source)} characters, more than "
                f"{MAX_CHARACTERS}; split the task into smaller answers"
            )
        try:
            self.source.encode()
        except UnicodeEncodeError as error:
            raise GrammarInputError(
                f"the {self.kind} grammar holds a lone surrogate at character {error.start}; "
                "remove it"
            ) from None
        _CHECKS[self.kind](self.source)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> Grammar:
        """The compact JSON texts that validate against `schema`, keys in its order."""
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarInputError(f"the schema is not JSON: {error}") from None

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """The texts that match `pattern` from their first to their last character."""
        return cls("regex", pattern)

    @classmethod
    def ebnf(cls, rules: str) -> Grammar:
        """The texts that the rule `root` derives."""
        return cls("ebnf", rules)

    def lowered(self) -> str:
        """The text that the compiler is given: a schema in the form it represents exactly."""
        if self.kind == "regex":
            return spell_dots(self.source, _ANY)
        if self.kind == "ebnf":
            return self.source
        return json.dumps(lower(json.loads(self.source)), ensure_ascii=False)


def _check_schema(source: str) -> None:
    try:
        schema = json.loads(source, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise GrammarInputError("the schema is nested too deeply; make it flatter") from None
    except ValueError as error:
        raise GrammarInputError(f"the schema is not JSON: {error}; correct it") from None
    lower(schema)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_regex(source: str) -> None:
    check_brackets("regex", source)
    check_repetition("regex", source)


def _check_ebnf(source: str) -> None:
    check_brackets("ebnf", source)
    check_repetition("ebnf", source)


_CHECKS: dict[str, Callable[[str], None]] = {
    "json_schema": _check_schema,
    "regex": _check_regex,
    "ebnf": _check_ebnf,
}
