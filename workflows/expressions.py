"""Expressions and templates of workflow files: read once into closures, never `eval`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from workflows.errors import ExpressionError
from workflows.grammar import Reference, Run, Scope, compile_expression, outside_strings
from workflows.operators import bounded, text

__all__ = ["Expression", "ExpressionError", "Template"]


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression; `references` holds (root, first key) with "" where no key is named."""

    text: str
    references: frozenset[Reference]
    _run: Run = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Read and check an expression; raises ExpressionError with the offset and the remedy."""
        run, references = compile_expression(text)
        return cls(text, references, run)

    def evaluate(self, scope: Scope) -> Any:
        """Value of the expression where `scope` maps each root to its value."""
        try:
            return self._run(scope)
        except ExpressionError as error:
            raise ExpressionError(error.problem, text=self.text, offset=error.offset) from None
        except RecursionError:
            raise ExpressionError("the values are nested too deeply", text=self.text) from None


@dataclass(frozen=True, slots=True)
class Template:
    """A JSON value whose strings may hold `${expression}`; `$${` stands for a literal `${`.

    A string that is one whole `${...}` becomes the value itself, with its type; inside a longer
    string the value is written as text (null as nothing, lists and objects as JSON).
    `is_constant` is true without any expression, `is_whole` for one string of one whole `${...}`.
    """

    value: Any
    references: frozenset[Reference]
    is_constant: bool
    is_whole: bool
    _run: Run = field(repr=False, compare=False)

    @classmethod
    def compile(cls, value: Any) -> Template:
        """Read every string in the value; raises ExpressionError with the offset in its string."""
        expressions: list[Expression] = []
        run = _compile(value, expressions)
        references = frozenset(r for expression in expressions for r in expression.references)
        is_whole = isinstance(value, str) and [e.evaluate for e in expressions] == [run]
        return cls(value, references, not expressions, is_whole, run)

    def resolve(self, scope: Scope) -> Any:
        """The value with its expressions evaluated; containers are fresh at every call."""
        return self._run(scope)


def _compile(value: Any, expressions: list[Expression]) -> Run:
    if isinstance(value, str):
        return _compile_text(value, expressions)
    if isinstance(value, dict):
        values = {key: _compile(part, expressions) for key, part in value.items()}
        return lambda scope: {key: part(scope) for key, part in values.items()}
    if isinstance(value, list | tuple):
        items = [_compile(part, expressions) for part in value]
        return lambda scope: [item(scope) for item in items]
    return lambda scope: value


def _compile_text(source: str, expressions: list[Expression]) -> Run:
    parts: list[str | Expression] = []
    for start, part in split_template(source):
        if start is None:
            parts.append(part)
            continue
        try:
            expression = Expression.parse(part)
        except ExpressionError as error:
            at = start + error.offset
            raise ExpressionError(error.problem, text=part, offset=at) from None
        expressions.append(expression)
        parts.append(expression)
    if len(parts) == 1:
        only = parts[0]
        if isinstance(only, Expression):
            return only.evaluate
        return lambda scope: only
    return lambda scope: bounded(
        "".join(part if isinstance(part, str) else text(part.evaluate(scope)) for part in parts)
    )


def split_template(source: str) -> Iterator[tuple[int | None, str]]:
    """Literal pieces as (None, text), expressions as (offset of their first character, text)."""
    literal: list[str] = []
    at, found = 0, False
    while (dollar := source.find("${", at)) >= 0:
        if dollar > at and source[dollar - 1] == "$":
            literal.append(source[at : dollar - 1] + "${")
            at = dollar + 2
            continue
        literal.append(source[at:dollar])
        if piece := "".join(literal):
            yield None, piece
        literal = []
        end = _closing_brace(source, dollar + 2)
        yield dollar + 2, source[dollar + 2 : end]
        at, found = end + 1, True
    literal.append(source[at:])
    if (piece := "".join(literal)) or not found:
        yield None, piece


def _closing_brace(source: str, start: int) -> int:
    """Offset of the brace that closes the expression at `start`."""
    depth = 0
    try:
        for offset, character in outside_strings(source, start):
            if character == "{":
                depth += 1
            elif character == "}":
                if depth == 0:
                    return offset
                depth -= 1
    except ExpressionError as error:
        raise ExpressionError(error.problem, text=error.text, offset=start + error.offset) from None
    raise ExpressionError(
        "'${' without a closing '}'; add it, or write '$${' for the two characters themselves",
        text=source[start:],
        offset=start - 2,
    )
