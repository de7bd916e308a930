"""What an expression may say: Python's syntax, of which only the table `_COMPILERS` is accepted."""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from workflows.errors import ExpressionError
from workflows.operators import (
    BINARY,
    COMPARISON,
    FUNCTIONS,
    attribute,
    bounded,
    cut,
    index,
    negative,
    positive,
)

MAX_LENGTH = 2_000
"""Longest expression, in characters."""
MAX_NODES = 300
"""Most syntax nodes of one expression."""
MAX_DEPTH = 64
"""Deepest nesting of one expression."""

ALLOWED = (
    "allowed are literals, state.x, inputs.x, indexing, comparisons, and/or/not, + - * / // %, "
    "'a if c else b', [...], {...} and the functions " + ", ".join(FUNCTIONS)
)

Scope = Mapping[str, Any]
Run = Callable[[Scope], Any]
Reference = tuple[str, str]

_CONSTANTS = {"true": True, "false": False, "null": None}
_WARNINGS = threading.Lock()

_NAMES = {
    "Lambda": "a lambda",
    "ListComp": "a comprehension",
    "SetComp": "a comprehension",
    "DictComp": "a comprehension",
    "GeneratorExp": "a comprehension",
    "JoinedStr": "an f-string",
    "NamedExpr": "the operator :=",
    "Await": "await",
    "Yield": "yield",
    "YieldFrom": "yield",
    "Starred": "a starred value",
    "Set": "a set",
    "Pow": "the operator **",
    "MatMult": "the operator @",
    "LShift": "the operator <<",
    "RShift": "the operator >>",
    "BitOr": "the operator |",
    "BitXor": "the operator ^",
    "BitAnd": "the operator &",
    "Invert": "the operator ~",
    "Is": "'is' (write ==)",
    "IsNot": "'is not' (write !=)",
}


def compile_expression(text: str) -> tuple[Run, frozenset[Reference]]:
    """Closure and references of an expression; raises ExpressionError with offset and remedy."""
    compiler = _Compiler(text)
    run = compiler.compile()
    return run, frozenset(compiler.references)


class _Compiler:
    """One pass over the syntax tree that checks it and builds closures."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lead = len(text) - len(text.lstrip())
        self.source = ""
        self.references: set[Reference] = set()
        self.nodes = 0
        self.depth = 0

    def compile(self) -> Run:
        """Closure of the whole expression."""
        if len(self.text) > MAX_LENGTH:
            raise self.error(f"it has {len(self.text)} characters; at most {MAX_LENGTH}", 0)
        if not self.text.strip():
            raise self.error("the expression is empty; write a value or a condition", 0)
        for offset, character in outside_strings(self.text, 0):
            if character == "#":
                raise self.error("a comment cannot stand in an expression; remove it", offset)
        # A line break means nothing between tokens, and YAML block texts are full of them.
        self.source = re.sub(r"\s", " ", self.text).strip()
        return self.visit(self._parse())

    def _parse(self) -> ast.expr:
        try:
            with _WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("error")
                return ast.parse(self.source, mode="eval").body
        except SyntaxError as error:
            if not error.offset:
                raise self.error("not an expression: it ends too early", len(self.text)) from None
            offset = self.lead + error.offset - 1
            raise self.error(f"not an expression: {error.msg}", offset) from None
        except (ValueError, RecursionError, MemoryError) as error:
            problem = str(error) or "nested too deeply"
            raise self.error(f"not an expression: {problem}", 0) from None

    def error(self, problem: str, at: ast.AST | int) -> ExpressionError:
        """The error for a problem at a node or an offset."""
        if isinstance(at, int):
            offset = at
        else:
            # The syntax tree counts UTF-8 bytes.
            column = getattr(at, "col_offset", 0)
            offset = self.lead + len(self.source.encode()[:column].decode(errors="ignore"))
        return ExpressionError(problem, text=self.text, offset=min(offset, len(self.text)))

    def refuse(self, construct: str, at: ast.AST) -> ExpressionError:
        """The error for a construct outside the language."""
        return self.error(f"{construct} is not part of the language; {ALLOWED}", at)

    def visit(self, node: ast.expr) -> Run:
        """Closure of one node."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error(f"the expression has more than {MAX_NODES} parts; split it", node)
        if self.depth >= MAX_DEPTH:
            raise self.error(f"the expression nests deeper than {MAX_DEPTH}; split it", node)
        compile_node = _COMPILERS.get(type(node))
        if compile_node is None:
            name = type(node).__name__
            raise self.refuse(_NAMES.get(name, name), node)
        self.depth += 1
        try:
            return compile_node(self, node)
        finally:
            self.depth -= 1

    def visit_all(self, nodes: list[ast.expr]) -> list[Run]:
        """Closures of several nodes."""
        return [self.visit(node) for node in nodes]


def outside_strings(text: str, start: int) -> Iterator[tuple[int, str]]:
    """Characters of an expression that stand outside its string literals, with their offsets."""
    quote, opened, escaped = "", 0, False
    for offset in range(start, len(text)):
        character = text[offset]
        if not quote:
            if character in "'\"":
                quote, opened = character, offset
            else:
                yield offset, character
        elif character == "\n":
            break
        elif escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == quote:
            quote = ""
    if quote:
        raise ExpressionError(
            f"the string is not closed; add {quote} on the same line",
            text=text[start:],
            offset=opened - start,
        )


def _constant(c: _Compiler, node: Any) -> Run:
    value = node.value
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise c.refuse(f"a {type(value).__name__} literal", node)
    try:
        bounded(value)
    except ExpressionError as error:
        raise c.error(error.problem, node) from None
    if node.kind is not None:
        raise c.refuse("a string prefix", node)
    return lambda scope: value


def _name(c: _Compiler, node: Any, key: str = "") -> Run:
    name: str = node.id
    if name in _CONSTANTS:
        value = _CONSTANTS[name]
        return lambda scope: value
    if name.startswith("__"):
        raise c.refuse(f"the name {name!r}", node)
    if name in FUNCTIONS:
        raise c.error(f"{name} is a function; call it as {FUNCTIONS[name].signature}", node)
    c.references.add((name, key))

    def run(scope: Scope) -> Any:
        try:
            return scope[name]
        except KeyError:
            known = ", ".join(sorted(scope))
            raise ExpressionError(f"nothing is called {name!r} here; known: {known}") from None

    return run


def _base(c: _Compiler, node: ast.expr, key: str) -> Run:
    """Closure of what stands before a key; a bare name is recorded together with the key."""
    if isinstance(node, ast.Name) and node.id not in _CONSTANTS:
        c.nodes += 1
        return _name(c, node, key)
    return c.visit(node)


def _attribute(c: _Compiler, node: Any) -> Run:
    key: str = node.attr
    if key.startswith("__"):
        raise c.refuse(f"the name {key!r}", node)
    base = _base(c, node.value, key)

    def run(scope: Scope) -> Any:
        value = base(scope)
        return value.get(key) if type(value) is dict else attribute(value, key)

    return run


def _subscript(c: _Compiler, node: Any) -> Run:
    inner = node.slice
    if isinstance(inner, ast.Slice):
        base = c.visit(node.value)
        bounds = [part and c.visit(part) for part in (inner.lower, inner.upper, inner.step)]
        return lambda scope: cut(base(scope), *(part and part(scope) for part in bounds))
    literal = isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    base = _base(c, node.value, inner.value if literal else "")
    key = c.visit(inner)
    return lambda scope: index(base(scope), key(scope))


def _compare(c: _Compiler, node: Any) -> Run:
    for operator in node.ops:
        name = type(operator).__name__
        if name not in COMPARISON:
            raise c.refuse(_NAMES.get(name, name), node)
    tests = [COMPARISON[type(operator).__name__] for operator in node.ops]
    left = c.visit(node.left)
    rights = c.visit_all(node.comparators)
    if len(tests) == 1:
        test, right = tests[0], rights[0]
        return lambda scope: test(left(scope), right(scope))

    def run(scope: Scope) -> bool:
        low = left(scope)
        for test, part in zip(tests, rights, strict=True):
            high = part(scope)
            if not test(low, high):
                return False
            low = high
        return True

    return run


def _boolean(c: _Compiler, node: Any) -> Run:
    parts = c.visit_all(node.values)
    stop_at = isinstance(node.op, ast.Or)

    def run(scope: Scope) -> Any:
        value: Any = None
        for part in parts:
            value = part(scope)
            if bool(value) is stop_at:
                break
        return value

    return run


def _binary(c: _Compiler, node: Any) -> Run:
    name = type(node.op).__name__
    if name not in BINARY:
        raise c.refuse(_NAMES.get(name, name), node)
    apply = BINARY[name]
    left, right = c.visit(node.left), c.visit(node.right)
    return lambda scope: apply(left(scope), right(scope))


def _unary(c: _Compiler, node: Any) -> Run:
    name = type(node.op).__name__
    operand = c.visit(node.operand)
    if name == "Not":
        return lambda scope: not operand(scope)
    if name == "Invert":
        raise c.refuse(_NAMES[name], node)
    sign = negative if name == "USub" else positive
    return lambda scope: sign(operand(scope))


def _choice(c: _Compiler, node: Any) -> Run:
    test, then, other = c.visit_all([node.test, node.body, node.orelse])
    return lambda scope: then(scope) if test(scope) else other(scope)


def _list(c: _Compiler, node: Any) -> Run:
    items = c.visit_all(node.elts)
    return lambda scope: [item(scope) for item in items]


def _dict(c: _Compiler, node: Any) -> Run:
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            raise c.refuse("** in an object", value)
        if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
            raise c.error("the keys of an object must be strings in quotes", key)
    keys = [key.value for key in node.keys]
    values = c.visit_all(node.values)
    return lambda scope: {key: value(scope) for key, value in zip(keys, values, strict=True)}


def _call(c: _Compiler, node: Any) -> Run:
    if isinstance(node.func, ast.Attribute):
        name = node.func.attr
        hint = f" (write {FUNCTIONS[name].signature})" if name in FUNCTIONS else ""
        raise c.refuse(f"the method call .{name}(){hint}", node)
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    function = FUNCTIONS.get(name)
    if function is None:
        near = get_close_matches(name, FUNCTIONS, 1)
        hint = f" (did you mean {near[0]}()?)" if near else ""
        raise c.refuse(f"the call {name or '...'}(){hint}", node)
    if node.keywords:
        raise c.error(f"{name}() takes no named arguments; write {function.signature}", node)
    count, most = len(node.args), function.most
    if count < function.least or (most is not None and count > most):
        raise c.error(f"{name}() has {count} arguments; write {function.signature}", node)
    call, arguments = function.call, c.visit_all(node.args)
    if count == 1:
        only = arguments[0]
        return lambda scope: call(only(scope))
    return lambda scope: call(*[argument(scope) for argument in arguments])


_COMPILERS: dict[type[ast.expr], Callable[[_Compiler, Any], Run]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.Compare: _compare,
    ast.BoolOp: _boolean,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.IfExp: _choice,
    ast.List: _list,
    ast.Tuple: _list,
    ast.Dict: _dict,
    ast.Call: _call,
}
"""Syntax node -> how it is compiled; what is missing here is refused."""
