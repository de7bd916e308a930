"""Operators and functions of the expression language: pure, on JSON values, bounded in size."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from workflows.errors import ExpressionError

MAX_INTEGER = 2**63 - 1
"""Largest magnitude of an integer that an expression may hold or produce."""
MAX_TEXT = 10_000_000
"""Longest text, in characters, that an expression may produce."""
MAX_ITEMS = 1_000_000
"""Longest list that an expression may produce."""


def kind(value: object) -> str:
    """JSON name of the value's type, with a short value where that helps."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"number {value!r}" if abs(value) < 1e20 else "number"
    if isinstance(value, str):
        return f"string {value!r}" if len(value) <= 40 else f"string of {len(value)} characters"
    if isinstance(value, Mapping):
        return f"object with {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"list of {len(value)}"
    return type(value).__name__


def text(value: Any) -> str:
    """The value as text: strings as they are, null as nothing, all else as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ExpressionError(f"a {kind(value)} cannot be written as JSON: {error}") from None


def bounded(value: Any) -> Any:
    """The value itself, refused when it is too large to go on with."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ExpressionError(
                f"the text would have {len(value)} characters; at most {MAX_TEXT}"
            )
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise ExpressionError(f"the number leaves the range of 64-bit integers ({MAX_INTEGER})")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ExpressionError("the number is not finite")
    elif isinstance(value, list) and len(value) > MAX_ITEMS:
        raise ExpressionError(f"the list would have {len(value)} items; at most {MAX_ITEMS}")
    return value


def _number(value: object) -> bool:
    return isinstance(value, int | float)


def _arithmetic(sign: str, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Numeric operator with a zero check and a bounded result."""

    def run(left: Any, right: Any) -> Any:
        if not (_number(left) and _number(right)):
            raise ExpressionError(f"cannot compute {kind(left)} {sign} {kind(right)}")
        if right == 0 and sign in ("/", "//", "%"):
            raise ExpressionError(f"{kind(left)} {sign} 0 divides by zero")
        return bounded(apply(left, right))

    return run


_plus = _arithmetic("+", operator.add)


def add(left: Any, right: Any) -> Any:
    """Sum of numbers, or strings or lists one after the other."""
    if isinstance(left, str) and isinstance(right, str):
        return bounded(left + right)
    if isinstance(left, list) and isinstance(right, list):
        return bounded(left + right)
    return _plus(left, right)


def _order(sign: str, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    """Ordering of two numbers, strings or lists."""

    def run(left: Any, right: Any) -> bool:
        try:
            return bool(apply(left, right))
        except TypeError:
            raise ExpressionError(f"cannot compare {kind(left)} {sign} {kind(right)}") from None

    return run


def member(element: Any, container: Any) -> bool:
    """True if a list holds the element, a string the part, an object the key."""
    if isinstance(container, str):
        if not isinstance(element, str):
            raise ExpressionError(f"a string cannot contain a {kind(element)}")
        return element in container
    if isinstance(container, list | tuple):
        return element in container
    if isinstance(container, Mapping):
        return isinstance(element, str) and element in container
    raise ExpressionError(f"a {kind(container)} contains nothing; give a list, string or object")


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": add,
    "Sub": _arithmetic("-", operator.sub),
    "Mult": _arithmetic("*", operator.mul),
    "Div": _arithmetic("/", operator.truediv),
    "FloorDiv": _arithmetic("//", operator.floordiv),
    "Mod": _arithmetic("%", operator.mod),
}
"""Name of the syntax node -> what the operator computes."""

COMPARISON: dict[str, Callable[[Any, Any], bool]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": _order("<", operator.lt),
    "LtE": _order("<=", operator.le),
    "Gt": _order(">", operator.gt),
    "GtE": _order(">=", operator.ge),
    "In": member,
    "NotIn": lambda element, container: not member(element, container),
}


def negative(value: Any) -> Any:
    """Minus the number."""
    if not _number(value):
        raise ExpressionError(f"cannot negate a {kind(value)}")
    return bounded(-value)


def positive(value: Any) -> Any:
    """The number itself."""
    if not _number(value):
        raise ExpressionError(f"a {kind(value)} has no sign")
    return +value


def attribute(value: Any, key: str) -> Any:
    """Value of an object's key, null where the key is missing."""
    if isinstance(value, Mapping):
        return value.get(key)
    raise ExpressionError(f"a {kind(value)} has no key {key!r}; only objects have keys")


def index(value: Any, key: Any) -> Any:
    """Element of a list or string by position, or value of an object by key."""
    if isinstance(value, Mapping):
        if not isinstance(key, str):
            raise ExpressionError(f"the key of an object must be a string, not a {kind(key)}")
        return value.get(key)
    if not isinstance(value, str | list | tuple):
        raise ExpressionError(f"a {kind(value)} cannot be indexed")
    if not isinstance(key, int) or isinstance(key, bool):
        raise ExpressionError(
            f"the position in a {kind(value)} must be an integer, not {kind(key)}"
        )
    if not -len(value) <= key < len(value):
        raise ExpressionError(f"position {key} is outside a {kind(value)}")
    return value[key]


def cut(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Slice of a list or string."""
    if not isinstance(value, str | list | tuple):
        raise ExpressionError(f"a {kind(value)} cannot be sliced")
    for bound in (start, stop, step):
        if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool)):
            raise ExpressionError(f"the bounds of a slice must be integers, not {kind(bound)}")
    if step == 0:
        raise ExpressionError("the step of a slice must not be 0")
    part = value[start:stop:step]
    return part if isinstance(part, str) else list(part)


def _expect(name: str, value: Any, *types: type, what: str) -> None:
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ExpressionError(f"{name}() takes {what}, not a {kind(value)}")


def _sequence(name: str, value: Any) -> Sequence[Any]:
    _expect(name, value, list, tuple, what="a list")
    items: Sequence[Any] = value
    return items


def _text(name: str, *values: Any) -> None:
    for value in values:
        _expect(name, value, str, what="a string")


def _length(value: Any) -> int:
    _expect("len", value, str, list, tuple, Mapping, what="a string, list or object")
    return len(value)


def _extreme(name: str, apply: Callable[[Any], Any]) -> Callable[..., Any]:
    def run(*values: Any) -> Any:
        items = _sequence(name, values[0]) if len(values) == 1 else values
        if not items:
            raise ExpressionError(f"{name}() of an empty list; guard it with len(...) > 0")
        try:
            return apply(items)
        except TypeError:
            kinds = ", ".join(sorted({kind(item) for item in items})[:3])
            raise ExpressionError(f"{name}() cannot order {kinds}") from None

    return run


def _sum(values: Any) -> Any:
    total: Any = 0
    for value in _sequence("sum", values):
        total = _plus(total, value)
    return total


def _absolute(value: Any) -> Any:
    _expect("abs", value, int, float, bool, what="a number")
    return bounded(abs(value))


def _round(value: Any, digits: Any = None) -> Any:
    _expect("round", value, int, float, bool, what="a number")
    if digits is not None:
        _expect("round", digits, int, what="an integer number of digits")
        if not -20 <= digits <= 20:
            raise ExpressionError(f"round() keeps between -20 and 20 digits, not {digits}")
    return bounded(round(value, digits))


def _convert(name: str, apply: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(value: Any) -> Any:
        _expect(name, value, int, float, str, bool, what="a number or a string")
        try:
            return bounded(apply(value))
        except (ValueError, OverflowError):
            raise ExpressionError(f"{name}() cannot read a {kind(value)}") from None

    return run


def _lower(value: Any) -> str:
    _text("lower", value)
    return str(value.lower())


def _upper(value: Any) -> str:
    _text("upper", value)
    return str(value.upper())


def _strip(value: Any, characters: Any = None) -> str:
    _text("strip", value, *([] if characters is None else [characters]))
    return str(value.strip(characters))


def _join(values: Any, separator: Any = ", ") -> str:
    _text("join", separator)
    return str(bounded(separator.join(text(value) for value in _sequence("join", values))))


def _contains(container: Any, element: Any) -> bool:
    return member(element, container)


def _startswith(value: Any, prefix: Any) -> bool:
    _text("startswith", value, prefix)
    return bool(value.startswith(prefix))


def _endswith(value: Any, suffix: Any) -> bool:
    _text("endswith", value, suffix)
    return bool(value.endswith(suffix))


def _any(values: Any) -> bool:
    return any(_sequence("any", values))


def _all(values: Any) -> bool:
    return all(_sequence("all", values))


def _sorted(values: Any) -> list[Any]:
    try:
        return sorted(_sequence("sorted", values))
    except TypeError:
        kinds = ", ".join(sorted({kind(value) for value in values})[:3])
        raise ExpressionError(f"sorted() cannot order {kinds}") from None


def _unique(values: Any) -> list[Any]:
    first: dict[str, Any] = {}
    for value in _sequence("unique", values):
        first.setdefault(json.dumps(value, sort_keys=True), value)
    return list(first.values())


def _pluck(rows: Any, key: Any) -> list[Any]:
    _text("pluck", key)
    return [attribute(row, key) for row in _sequence("pluck", rows)]


def _default(value: Any, fallback: Any) -> Any:
    return fallback if value is None else value


class Function(NamedTuple):
    """A function of the language: how it is called, what it does, how many arguments it takes."""

    signature: str
    summary: str
    call: Callable[..., Any]
    least: int
    most: int | None


FUNCTIONS: dict[str, Function] = {
    "len": Function("len(x)", "length of a string, list or object", _length, 1, 1),
    "min": Function("min(list) or min(a, b, ...)", "smallest", _extreme("min", min), 1, None),
    "max": Function("max(list) or max(a, b, ...)", "largest", _extreme("max", max), 1, None),
    "sum": Function("sum(list)", "sum of numbers", _sum, 1, 1),
    "abs": Function("abs(x)", "magnitude of a number", _absolute, 1, 1),
    "round": Function("round(x, digits)", "rounded number, digits optional", _round, 1, 2),
    "int": Function("int(x)", "integer from a number or string", _convert("int", int), 1, 1),
    "float": Function("float(x)", "number from a string", _convert("float", float), 1, 1),
    "str": Function("str(x)", "text as a template writes it", text, 1, 1),
    "lower": Function("lower(text)", "in small letters", _lower, 1, 1),
    "upper": Function("upper(text)", "in capital letters", _upper, 1, 1),
    "strip": Function("strip(text, characters)", "without blanks at the ends", _strip, 1, 2),
    "join": Function("join(list, separator)", "items as one text; separator ', '", _join, 1, 2),
    "contains": Function("contains(x, part)", "true if x holds the part", _contains, 2, 2),
    "startswith": Function("startswith(text, prefix)", "true or false", _startswith, 2, 2),
    "endswith": Function("endswith(text, suffix)", "true or false", _endswith, 2, 2),
    "any": Function("any(list)", "true if some item is true", _any, 1, 1),
    "all": Function("all(list)", "true if every item is true", _all, 1, 1),
    "sorted": Function("sorted(list)", "ascending copy", _sorted, 1, 1),
    "unique": Function("unique(list)", "each item once, first order kept", _unique, 1, 1),
    "pluck": Function("pluck(list, key)", "that key of every object", _pluck, 2, 2),
    "default": Function("default(x, fallback)", "fallback where x is null", _default, 2, 2),
}
"""Every function that an expression may call."""
