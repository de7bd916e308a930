"""The adapters of a generating node: different ones, which its engine attaches."""

from __future__ import annotations

from pydantic import BaseModel

from inference.suggest import nearest
from workflows.checks.draft import Draft
from workflows.schema import NodeSpec
from workflows.source import Path


def check_adapter(draft: Draft, place: Path, node: NodeSpec, engine: type[BaseModel]) -> None:
    """Every name is given once and is one of the engine resource's `adapters`."""
    resource = draft.resources.get(node.engine)
    if "adapters" not in engine.model_fields or resource is None:
        return  # an engine without adapters lacks the capability, which is a fault of its own
    given = resource.options.get("adapters")
    known = given if isinstance(given, dict) else {}
    for at, name in enumerate(node.adapters):
        where = (*place, "adapter", at) if isinstance(node.adapter, list) else (*place, "adapter")
        if name in node.adapters[:at]:
            message = f"node {place[-1]!r} names adapter {name!r} more than once; name it once"
            draft.add(where, "bad_adapter", message)
        elif name not in known:
            hint = (
                nearest(name, known)
                if known
                else f"add `adapters: {{{name}: FOLDER}}` to its options"
            )
            message = (
                f"node {place[-1]!r} names adapter {name!r}, which the engine {node.engine!r} "
                f"does not attach; {hint}"
            )
            draft.add(where, "unknown_adapter", message)
