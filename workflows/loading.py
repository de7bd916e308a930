"""A workflow by its shipped name or its path: read, checked, and its expressions compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from inference.suggest import nearest
from workflows.checks.draft import Draft, Tables
from workflows.errors import InvalidWorkflow, WorkflowInputError
from workflows.expressions import Expression, ExpressionError, Template
from workflows.inputs import check_inputs, parse_input, value_problem
from workflows.schema import WorkflowSpec
from workflows.shelves import (
    SHIPPED,
    SUFFIXES,
    Disk,
    Shelf,
    key_of_child,
    library,
    shipped_workflows,
    unknown,
)
from workflows.source import Tree, parse_yaml
from workflows.validate import validate

__all__ = ["Workflow", "load_from", "load_workflow", "parse_input", "shipped_workflows"]

MAX_DEPTH = 5
"""Deepest chain of workflows that call each other."""

CALL = "workflow"
"""The node kind whose options name another workflow and its inputs."""


@dataclass(frozen=True)
class Workflow:
    """A checked workflow with everything compiled that can be before it runs.

    `conditions` is aligned with `spec.edges`; `children` holds the sub-workflows by node name.
    `key` names it independent of the host (`workflows.shelves`).
    """

    key: str
    spec: WorkflowSpec
    file: str
    text: str = field(repr=False)
    sha256: str
    options: Mapping[str, Template] = field(repr=False)
    sampling: Mapping[str, Template] = field(repr=False)
    over: Mapping[str, Template | None] = field(repr=False)
    conditions: list[Expression | None] = field(repr=False)
    outputs: Template = field(repr=False)
    budget: Template = field(repr=False)
    children: Mapping[str, Workflow] = field(repr=False)

    @classmethod
    def compile(
        cls, key: str, tree: Tree, spec: WorkflowSpec, children: dict[str, Workflow]
    ) -> Workflow:
        """Compile the expressions of a file that has no faults."""
        nodes = spec.nodes
        return cls(
            key=key,
            spec=spec,
            file=tree.file,
            text=tree.text,
            sha256=hashlib.sha256(tree.text.encode()).hexdigest(),
            options={name: Template.compile(node.options) for name, node in nodes.items()},
            sampling={
                name: Template.compile(
                    node.sampling.model_dump(exclude_none=True) if node.sampling else {}
                )
                for name, node in nodes.items()
            },
            over={
                name: None if node.over is None else Template.compile(node.over)
                for name, node in nodes.items()
            },
            conditions=[
                None if edge.when is None else Expression.parse(edge.when) for edge in spec.edges
            ],
            outputs=Template.compile(spec.outputs),
            budget=Template.compile(spec.budget.model_dump(exclude_none=True)),
            children=children,
        )

    def check_inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs with defaults filled in; raises WorkflowInputError naming every problem."""
        return check_inputs(self.spec.name, self.spec.inputs, given)

    def texts(self) -> dict[str, str]:
        """The text of this workflow and of every one it calls, by key."""
        found = {self.key: self.text}
        for child in self.children.values():
            found |= child.texts()
        return found


def load_workflow(name_or_path: str | Path, *, tables: Tables | None = None) -> Workflow:
    """Read and check a workflow; raises InvalidWorkflow with all faults of the file.

    A text without a folder or a .yaml suffix is a shipped name, anything else a path.
    """
    key, folder = locate(name_or_path)
    return _Loader(Disk(folder, key), tables or Tables.default()).load(key, ())


def load_from(
    shelf: Shelf,
    key: str,
    *,
    tables: Tables | None = None,
    check: Callable[[Draft], None] | None = None,
) -> Workflow:
    """Read and check the workflow of a key, and those it calls, from one shelf.

    `check` notes further faults of every text that is not shipped.
    """
    return _Loader(shelf, tables or Tables.default(), check).load(key, ())


def locate(name_or_path: str | Path) -> tuple[str, Path]:
    """The key that a name or path means, and the folder to which it is relative."""
    text = str(name_or_path)
    named = isinstance(name_or_path, str) and Path(text).name == text
    if named and text in shipped_workflows():
        return SHIPPED + text, library()
    path = Path(name_or_path)
    if named and not text.endswith(SUFFIXES) and not path.is_file():
        raise unknown(text)
    return path.name, path.parent


class _Loader:
    """Loads a workflow and, depth first, the workflows that it calls."""

    def __init__(
        self, shelf: Shelf, tables: Tables, check: Callable[[Draft], None] | None = None
    ) -> None:
        self.check = check
        self.shelf = shelf
        self.tables = tables

    def load(self, key: str, callers: tuple[str, ...]) -> Workflow:
        """The workflow of a key; `callers` are the keys that led here."""
        tree = parse_yaml(self.shelf.text(key), self.shelf.label(key))

        def children(draft: Draft) -> dict[str, Workflow]:
            if self.check is not None and not key.startswith(SHIPPED):
                self.check(draft)
            return self._children(draft, (*callers, key))

        spec, loaded = validate(tree, self.tables, children)
        return Workflow.compile(key, tree, spec, loaded)

    def _children(self, draft: Draft, chain: tuple[str, ...]) -> dict[str, Workflow]:
        children: dict[str, Workflow] = {}
        for node_name, node in draft.nodes.items():
            if node is None or node.use != CALL or draft.kind(node) is None:
                continue
            name = node.options.get("name")
            place = ("nodes", node_name, "with", "name")
            if not isinstance(name, str):
                continue
            try:
                if not Template.compile(name).is_constant:
                    message = "the name of a sub-workflow cannot be an expression; write it out"
                    draft.add(place, "expression_not_allowed", message)
                    continue
                child = self._child(name, chain)
            except ExpressionError:
                continue
            except InvalidWorkflow as error:
                more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
                first = error.faults[0]
                message = f"sub-workflow {error.file}:{first.line}:{first.column}: {first.message}"
                draft.add(place, "invalid_child", message + more)
            except WorkflowInputError as error:
                draft.add(place, "unknown_workflow", str(error))
            else:
                children[node_name] = child
                _check_child_inputs(draft, node_name, node.options.get("inputs", {}), child)
        return children

    def _child(self, name: str, chain: tuple[str, ...]) -> Workflow:
        key = key_of_child(name, chain[-1])
        if key in chain:
            stems = [PurePath(step.removeprefix(SHIPPED)).stem for step in (*chain, key)]
            circle = " -> ".join(stems[chain.index(key) :])
            raise WorkflowInputError(f"the workflows call each other in a circle: {circle}")
        if len(chain) >= MAX_DEPTH:
            raise WorkflowInputError(f"workflows call each other more than {MAX_DEPTH} deep")
        return self.load(key, chain)


def _check_child_inputs(draft: Draft, node: str, given: Any, child: Workflow) -> None:
    """Inputs that a node gives to its sub-workflow against those which that one declares."""
    place = ("nodes", node, "with", "inputs")
    if not isinstance(given, dict):
        return
    specs = child.spec.inputs
    for name, value in given.items():
        if name not in specs:
            message = f"workflow {child.spec.name!r} has no input {name!r}; {nearest(name, specs)}"
            draft.add((*place, name), "unknown_input", message, key=True)
            continue
        try:
            template = Template.compile(value)
        except ExpressionError:
            continue
        if template.is_constant and (problem := value_problem(specs[name], template.resolve({}))):
            message = f"input {name!r} of workflow {child.spec.name!r} {problem}"
            draft.add((*place, name), "bad_input", message)
    for name, spec in specs.items():
        if spec.required and name not in given:
            message = f"workflow {child.spec.name!r} needs the input {name!r} ({spec.type}); add it"
            draft.add(place, "missing_input", message, key=True)
