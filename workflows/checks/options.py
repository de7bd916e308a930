"""Options: of resources, of nodes, of sampling, of budgets and of inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from inference import InferenceInputError, SamplingParams
from inference.errors import MethodInputError
from inference.suggest import nearest
from workflows.checks.adapter import check_adapter
from workflows.checks.draft import Draft
from workflows.checks.grammar import check_grammar
from workflows.checks.shape import field_names, findings
from workflows.expressions import ExpressionError, Template
from workflows.inputs import type_problem, value_problem
from workflows.nodes.base import Node
from workflows.operators import kind
from workflows.schema import END, START, InputSpec, NodeSpec
from workflows.source import Path

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def check_inputs(draft: Draft) -> None:
    """Defaults, choices and bounds of every input agree with its type."""
    for name, spec in draft.inputs.items():
        if spec is None:
            continue
        place: Path = ("inputs", name)
        _check_choices(draft, place, spec)
        for bound in ("minimum", "maximum"):
            if getattr(spec, bound) is not None and spec.type not in ("integer", "number"):
                message = f"input {name!r} is a {spec.type}; {bound} is for integer and number"
                draft.add((*place, bound), "bad_bound", message, key=True)
        if spec.minimum is not None and spec.maximum is not None and spec.minimum > spec.maximum:
            message = f"input {name!r}: minimum {spec.minimum:g} exceeds maximum {spec.maximum:g}"
            draft.add((*place, "minimum"), "bad_bound", message)
        if not spec.required and (problem := value_problem(spec, spec.default)):
            draft.add((*place, "default"), "bad_default", f"default of input {name!r} {problem}")


def _check_choices(draft: Draft, place: Path, spec: InputSpec) -> None:
    if spec.choices is None:
        return
    if not spec.choices:
        message = "choices must not be empty; leave them out to allow everything"
        draft.add((*place, "choices"), "bad_choice", message)
    for index, choice in enumerate(spec.choices):
        if problem := type_problem(spec, choice):
            draft.add((*place, "choices", index), "bad_choice", f"the choice {problem}")


def check_resources(draft: Draft) -> None:
    """Every resource names a row of a table and gives options that row knows."""
    rows: dict[str, type[BaseModel]] = {**draft.tables.engines, **draft.tables.retrievers}
    for name, resource in draft.resources.items():
        if resource is None:
            continue
        place: Path = ("resources", name)
        row = rows.get(resource.use)
        if row is None:
            message = f"unknown engine or retriever {resource.use!r}; {nearest(resource.use, rows)}"
            draft.add((*place, "use"), "unknown_resource", message)
            continue
        literal = dict(resource.options)
        for option in resource.options:
            if _holds_template(resource.options[option]):
                message = (
                    f"option {option!r} of resource {name!r} cannot be an expression, because "
                    "resources are opened before the run; write the value out"
                )
                draft.add((*place, option), "expression_not_allowed", message)
                del literal[option]
        _check_model(draft, place, row, literal, set(resource.options) - set(literal))


def check_nodes(draft: Draft) -> None:
    """Kind, options, saving, mapping, resources and sampling of every node."""
    for name, node in draft.nodes.items():
        place: Path = ("nodes", name)
        if name in (START, END):
            message = f"a node cannot be called {name!r}: every graph has that endpoint; rename it"
            draft.add(place, "reserved_name", message, key=True)
        if node is None:
            continue
        _check_map(draft, place, node)
        row = draft.kind(node)
        if row is None:
            message = f"unknown node kind {node.use!r}; {nearest(node.use, draft.tables.nodes)}"
            draft.add((*place, "use"), "unknown_node_kind", message)
            continue
        check_node_options(draft, place, node, row)
        _check_save(draft, place, node)
        _check_use_of_engine(draft, place, node, row)
        _check_use_of_retriever(draft, place, node, row)


def check_node_options(draft: Draft, place: Path, node: NodeSpec, row: type[Node]) -> None:
    """Literal options against the fields of the node's class; expressions are left to the run."""
    literal: dict[str, Any] = {}
    later: set[str] = set()
    for option, value in node.options.items():
        try:
            template = Template.compile(value)
        except ExpressionError:
            later.add(option)
            continue
        if template.is_constant:
            literal[option] = template.resolve({})
        else:
            later.add(option)
    _check_model(draft, (*place, "with"), row, literal, later)


def _check_model(
    draft: Draft, place: Path, row: type[BaseModel], literal: dict[str, Any], later: set[str]
) -> None:
    """Options of a table row; those named in `later` have no value yet."""
    known = field_names(row)
    for option in sorted(later - set(known)):
        message = f"unknown option {option!r}; {nearest(option, known)}"
        draft.add((*place, option), "unknown_option", message, key=True)
    try:
        row.model_validate_json(json.dumps(literal), strict=True)
    except ValidationError as error:
        for found in findings(error, literal, lambda path: [] if path else known):
            name = str(found.path[0]) if found.path else ""
            if found.code == "missing_key":
                _check_missing(draft, place, error, later, row)
            elif found.code == "unknown_key" and len(found.path) == 1:
                message = f"unknown option {name!r}; {nearest(name, known)}"
                draft.add((*place, name), "unknown_option", message, key=True)
            elif found.path or not later:
                message = f"option {found.message}"
                draft.add((*place, *found.path), "bad_option", message, key=found.key)


def _check_missing(
    draft: Draft, place: Path, error: ValidationError, later: set[str], row: type[BaseModel]
) -> None:
    for problem in error.errors(include_url=False):
        if problem["type"] != "missing" or problem["loc"][0] in later:
            continue
        option = ".".join(str(step) for step in problem["loc"])
        owner = place if place in draft.tree.keys else place[:-1]
        message = f"the required option {option!r} is missing; add it under {place[-1]!r}"
        fault = draft.tree.fault(owner, "missing_option", message, key=True)
        if fault not in draft.faults:
            draft.faults.append(fault)


def _holds_template(value: Any) -> bool:
    try:
        return not Template.compile(value).is_constant
    except ExpressionError:
        return True


def _check_map(draft: Draft, place: Path, node: NodeSpec) -> None:
    name = place[-1]
    if node.over is not None and node.into is None:
        message = f"node {name!r} maps over a list but says not where to; add `into: STATE_KEY`"
        draft.add((*place, "over"), "map_without_into", message, key=True)
    if node.over is None:
        for option in ("into", "item", "max_parallel"):
            if option in node.model_fields_set:
                message = f"`{option}` is for a parallel map; add `over: ${{...}}` or remove it"
                draft.add((*place, option), "map_without_over", message, key=True)
    if node.into is not None and not _NAME.fullmatch(node.into):
        draft.add((*place, "into"), "bad_name", _bad_key(node.into))


def _check_save(draft: Draft, place: Path, node: NodeSpec) -> None:
    keys = draft.written(node, renamed=False)
    targets: dict[str, str] = {}
    for key, target in node.save.items():
        if key not in keys:
            message = f"node {place[-1]!r} ({node.use}) does not write {key!r}; "
            draft.add((*place, "save", key), "unknown_save", message + nearest(key, keys), key=True)
        if not _NAME.fullmatch(target):
            draft.add((*place, "save", key), "bad_name", _bad_key(target))
    for key in sorted(keys):
        target = node.save.get(key, key)
        if target in targets:
            message = f"{targets[target]!r} and {key!r} would both be saved as {target!r}; rename"
            draft.add((*place, "save"), "save_clash", message, key=True)
        targets.setdefault(target, key)
        if key not in node.save and not _NAME.fullmatch(key):
            draft.add((*place, "with"), "bad_name", _bad_key(key), key=True)


def _bad_key(key: str) -> str:
    return (
        f"the state key {key!r} must start with a letter and hold letters, digits and _ only, "
        "at most 64"
    )


GENERATING = ("sampling", "grammar", "adapter", "kv", "drafter", "trigger", "engine")
"""Keys of nodes that generate."""


def _check_use_of_engine(draft: Draft, place: Path, node: NodeSpec, row: type[Node]) -> None:
    name = place[-1]
    if not row.generates:
        for option in GENERATING:
            if option in node.model_fields_set:
                message = f"node {name!r} ({node.use}) generates nothing; remove `{option}`"
                draft.add((*place, option), "not_generating", message, key=True)
        return
    _check_sampling(draft, place, node)
    check_grammar(draft, place, node)
    _check_method(draft, place, "kv", node.kv, node.policy)
    _check_method(draft, place, "drafter", node.drafter, node.drafts)
    _check_method(draft, place, "trigger", node.trigger, node.watches)
    for option in ("grammar", "kv", "drafter"):
        if node.trigger is not None and getattr(node, option) is not None:
            message = (
                f"node {name!r} has a trigger, which goes back inside an answer, and `{option}`, "
                "which holds for whole answers; remove one of the two"
            )
            draft.add((*place, option), "trigger_with_" + option, message, key=True)
    config = _resource(draft, place, node.engine, "engine", draft.tables.engines)
    if config is None:
        return
    check_adapter(draft, place, node, config)
    for capability in sorted((row.needs | node.needs.keys()) - config.provides):
        able = [use for use, row_ in draft.tables.engines.items() if capability in row_.provides]
        message = (
            f"node {name!r} ({node.use}) needs the capability {capability.value!r}, which the "
            f"engine {node.engine!r} lacks; engines that have it: {', '.join(able) or 'none'}"
        )
        at = "use" if capability in row.needs else node.needs[capability]
        draft.add((*place, at), "missing_capability", message, key=at != "use")


def _check_method(
    draft: Draft, place: Path, key: str, given: object, make: Callable[[], object]
) -> None:
    """A method of its table and options it takes, at their places."""
    try:
        make()
    except MethodInputError as error:
        at: Path = (*place, key)
        if error.option is not None and isinstance(given, dict) and error.option in given:
            draft.add((*at, error.option), error.code, str(error), key=error.unknown)
        else:
            draft.add(at, error.code, str(error), key=isinstance(given, dict))


def _check_use_of_retriever(draft: Draft, place: Path, node: NodeSpec, row: type[Node]) -> None:
    if row.retrieves or node.trigger is not None:
        _resource(draft, place, node.retriever, "retriever", draft.tables.retrievers)
    elif "retriever" in node.model_fields_set:
        message = f"node {place[-1]!r} ({node.use}) retrieves nothing; remove `retriever`"
        draft.add((*place, "retriever"), "not_retrieving", message, key=True)


def _resource(draft: Draft, place: Path, name: str, role: str, table: Mapping[str, Any]) -> Any:
    """Table row of the resource that a node names, None (and a fault) if there is none."""
    named = role in (draft.tree.at(place) or {})
    at = (*place, role) if named else place
    if name not in draft.resources:
        candidates = [key for key, spec in draft.resources.items() if spec and spec.use in table]
        hint = (
            nearest(name, candidates)
            if candidates
            else f"add `{name}: {{use: {next(iter(table), '...')}}}` under resources"
        )
        message = f"node {place[-1]!r} needs the {role} resource {name!r}, which is missing; {hint}"
        draft.add(at, f"missing_{role}", message, key=not named)
        return None
    spec = draft.resources[name]
    known = {*draft.tables.engines, *draft.tables.retrievers}
    if spec is None or spec.use not in known:
        return None
    if spec.use not in table:
        message = f"node {place[-1]!r} needs a {role}, but resource {name!r} is {spec.use!r}; "
        draft.add(at, f"not_a_{role}", message + f"use one of {', '.join(table)}", key=not named)
        return None
    return table[spec.use]


def _check_sampling(draft: Draft, place: Path, node: NodeSpec) -> None:
    if node.sampling is None:
        return
    for name, value in node.sampling.model_dump(exclude_none=True).items():
        at = (*place, "sampling", name)
        if _holds_template(value):
            continue
        if isinstance(value, str):
            message = f"sampling {name} must be a number or ${{...}} (found: {kind(value)})"
            draft.add(at, "wrong_type", message)
            continue
        try:
            given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value}
            SamplingParams(**given)
        except InferenceInputError as error:
            draft.add(at, "bad_value", str(error))


def check_budget(draft: Draft) -> None:
    """Literal limits are positive numbers."""
    budget = draft.tree.at(("budget",))
    for name, value in budget.items() if isinstance(budget, dict) else []:
        if value is None or _holds_template(value):
            continue
        if isinstance(value, str):
            message = f"budget {name} must be a number or ${{inputs...}} (found: {kind(value)})"
            draft.add(("budget", name), "wrong_type", message)
        elif isinstance(value, int | float) and not value > 0:
            message = f"budget {name} must be positive (found: {value}); leave it out for no limit"
            draft.add(("budget", name), "bad_value", message)


def check_state(draft: Draft) -> None:
    """Initial values of the state are literals under plain names."""
    for key, value in draft.state.items():
        if not _NAME.fullmatch(key):
            draft.add(("state", key), "bad_name", _bad_key(key), key=True)
        if _holds_template(value):
            message = f"state {key!r} is set before the run, so it cannot hold an expression; "
            draft.add(("state", key), "expression_not_allowed", message + "use a `set` node")
