"""Scopes: every expression can be read, and every name in it means something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from inference.suggest import nearest
from workflows.checks.draft import Draft
from workflows.expressions import Expression, ExpressionError, Template, split_template
from workflows.grammar import Reference
from workflows.operators import FUNCTIONS, kind
from workflows.schema import NodeSpec
from workflows.source import Path

_RESERVED = {"state", "inputs", "true", "false", "null", *FUNCTIONS}


class _Scope:
    """The names that expressions at one place may use."""

    def __init__(self, draft: Draft, *, state: bool = True, item: str | None = None) -> None:
        self.draft = draft
        self.inputs = set(draft.inputs)
        # A node that cannot be read might write any key, so then no key is called unknown.
        self.state = draft.state_keys() if state and draft.all_nodes_known else None
        self.roots = {"inputs"} | ({"state"} if state else set()) | ({item} if item else set())

    def check(self, path: Path, text: str, start: int, references: Iterable[Reference]) -> None:
        """Note every reference of an expression, `start` characters into the value, that fails."""
        for root, key in sorted(references):
            offset = start + max(text.find(f"{root}.{key}" if key else root), 0)
            if root not in self.roots:
                hint = nearest(root, self.roots)
                if root == "state":
                    hint = "the state does not exist yet here; use inputs"
                message = f"unknown name {root!r}; {hint}"
                self.draft.add(path, "unknown_name", message, offset=offset)
            elif root == "inputs" and key and key not in self.inputs:
                message = f"unknown input {key!r}; {nearest(key, self.inputs)}"
                self.draft.add(path, "unknown_input", message, offset=offset)
            elif root == "state" and key and self.state is not None and key not in self.state:
                hint = nearest(key, self.state)
                message = f"no node writes state.{key} and `state:` does not declare it; {hint}"
                self.draft.add(path, "unknown_state_key", message, offset=offset)

    def check_template(self, path: Path, value: Any) -> None:
        """Every string inside a value."""
        for place, text in _strings(path, value):
            try:
                parts = list(split_template(text))
            except ExpressionError as error:
                self.draft.add(place, "expression", str(error), offset=error.offset)
                continue
            for start, part in parts:
                if start is not None:
                    self.check_expression(place, part, start)

    def check_expression(self, path: Path, text: str, start: int = 0) -> None:
        """A bare expression, `start` characters into the value."""
        try:
            expression = Expression.parse(text)
        except ExpressionError as error:
            self.draft.add(path, "expression", str(error), offset=start + error.offset)
        else:
            self.check(path, text, start, expression.references)


def check_scopes(draft: Draft) -> None:
    """Options, maps, sampling, conditions, outputs and budget."""
    for name, node in draft.nodes.items():
        if node is not None:
            _check_node(draft, ("nodes", name), node)
    scope = _Scope(draft)
    for index, edge in enumerate(draft.edges):
        if edge is not None and edge.when is not None:
            _check_condition(scope, ("edges", index, "when"), edge.when)
    outputs = draft.tree.at(("outputs",))
    if isinstance(outputs, dict):
        scope.check_template(("outputs",), outputs)
        _check_outputs(draft, outputs)
    _Scope(draft, state=False).check_template(("budget",), draft.tree.at(("budget",)))


def _check_node(draft: Draft, place: Path, node: NodeSpec) -> None:
    item = None
    if node.over is not None:
        _check_over(draft, place, node.over)
        item = node.item
        if item in _RESERVED:
            message = f"a map cannot call its item {item!r}, which means something else; rename it"
            draft.add((*place, "item"), "reserved_name", message)
    scope = _Scope(draft, item=item)
    scope.check_template((*place, "with"), node.options)
    if node.sampling is not None:
        scope.check_template((*place, "sampling"), node.sampling.model_dump(exclude_none=True))
    kind_ = draft.kind(node)
    if kind_ is not None and draft.all_nodes_known:
        known = draft.state_keys()
        for key in kind_.reads:
            if key not in known:
                message = (
                    f"node {place[-1]!r} ({node.use}) reads state.{key}, which no node writes and "
                    "`state:` does not declare; add a node before it that writes it"
                )
                draft.add(place, "unread_state_key", message, key=True)


def _check_over(draft: Draft, place: Path, over: str) -> None:
    path = (*place, "over")
    _Scope(draft).check_template(path, over)
    try:
        template = Template.compile(over)
    except ExpressionError:
        return
    if not template.is_whole:
        message = f"`over` must be one ${{...}} that gives a list (found: {kind(over)})"
        draft.add(path, "bad_value", message)


def _check_condition(scope: _Scope, path: Path, text: str) -> None:
    if text.lstrip().startswith("${"):
        message = "a condition is an expression already; write it without ${ and }"
        scope.draft.add(path, "expression", message)
        return
    scope.check_expression(path, text)


def _check_outputs(draft: Draft, outputs: dict[str, Any]) -> None:
    try:
        references = Template.compile(outputs).references
    except ExpressionError:
        return
    if outputs and not references:
        message = "no output refers to the state or the inputs; write e.g. ${state.answer}"
        draft.add(("outputs",), "constant_outputs", message, key=True)


def _strings(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _strings((*path, key), part)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _strings((*path, index), part)
