"""All faults of a workflow file at once, each at line and column with its remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from workflows.checks.draft import Draft, Tables
from workflows.checks.graph import check_graph
from workflows.checks.options import (
    check_budget,
    check_inputs,
    check_nodes,
    check_resources,
    check_state,
)
from workflows.checks.scopes import check_scopes
from workflows.checks.shape import check_shape
from workflows.errors import InvalidWorkflow
from workflows.schema import WorkflowSpec
from workflows.source import Tree

if TYPE_CHECKING:
    from workflows.loading import Workflow

__all__ = ["Tables", "validate"]

Children = Callable[[Draft], "dict[str, Workflow]"]
"""Loads the sub-workflows that a draft names and notes their faults in it."""


def validate(
    tree: Tree, tables: Tables | None = None, children: Children | None = None
) -> tuple[WorkflowSpec, dict[str, Workflow]]:
    """The checked workflow and its sub-workflows by node; raises InvalidWorkflow with all faults.

    `tables` says what `use` may name, by default everything that is installed.
    """
    draft = Draft.of(tree, tables or Tables.default())
    check_shape(draft)
    check_inputs(draft)
    check_resources(draft)
    check_state(draft)
    check_nodes(draft)
    check_budget(draft)
    check_graph(draft)
    check_scopes(draft)
    loaded = children(draft) if children is not None else {}
    if draft.faults:
        raise InvalidWorkflow(tree.file, draft.faults)
    spec = WorkflowSpec.model_validate_json(json.dumps(tree.value), strict=True)
    return spec, loaded
