"""A workflow file while it is being checked: the parts that can be read, and the faults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from inference.engine import EngineConfig
from retrieval import RetrieverConfig
from workflows.errors import Fault
from workflows.nodes.base import Node
from workflows.schema import EdgeSpec, InputSpec, NodeSpec, ResourceSpec
from workflows.source import Path, Tree

if TYPE_CHECKING:
    from workflows.loading import Workflow

MAX_MESSAGE = 1_000
"""Longest message of a fault, in characters; values in a file can be much longer."""

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Tables:
    """What `use` may name: node kinds, engines, and retrievers over documents or a graph."""

    nodes: Mapping[str, type[Node]]
    engines: Mapping[str, type[EngineConfig]]
    retrievers: Mapping[str, type[RetrieverConfig]]

    @classmethod
    def default(cls) -> Tables:
        """The tables of this installation."""
        from graphs.table import GRAPH_RETRIEVERS
        from inference.engine import ENGINES
        from retrieval.table import RETRIEVERS
        from workflows.nodes import NODES

        return cls(NODES, ENGINES, {**RETRIEVERS, **GRAPH_RETRIEVERS})


@dataclass
class Draft:
    """The readable parts of a file; a part that could not be read is None but keeps its name."""

    tree: Tree
    tables: Tables
    inputs: dict[str, InputSpec | None]
    resources: dict[str, ResourceSpec | None]
    nodes: dict[str, NodeSpec | None]
    edges: list[EdgeSpec | None]
    state: dict[str, Any]
    children: dict[str, Workflow] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @classmethod
    def of(cls, tree: Tree, tables: Tables) -> Draft:
        """Read each part by itself, so that one bad part does not hide the others."""
        return cls(
            tree,
            tables,
            {name: _read(InputSpec, raw) for name, raw in _section(tree, "inputs")},
            {name: _read(ResourceSpec, raw) for name, raw in _section(tree, "resources")},
            {name: _read(NodeSpec, raw) for name, raw in _section(tree, "nodes")},
            [_read(EdgeSpec, raw) for raw in _list(tree.at(("edges",)))],
            dict(_section(tree, "state")),
        )

    def add(
        self, path: Path, code: str, message: str, *, key: bool = False, offset: int = 0
    ) -> None:
        """Note a fault at a key or value."""
        short = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "..."
        self.faults.append(self.tree.fault(path, code, short, key=key, offset=offset))

    def kind(self, node: NodeSpec) -> type[Node] | None:
        """Class of a node, None if its kind is unknown."""
        return self.tables.nodes.get(node.use)

    def written(self, node: NodeSpec, *, renamed: bool = True) -> frozenset[str]:
        """State keys that a node writes; a parallel map writes its `into` only."""
        if node.over is not None and renamed:
            return frozenset() if node.into is None else frozenset({node.into})
        kind = self.kind(node)
        if kind is None:
            return frozenset()
        keys = kind.written(node.options) | (
            kind.found.keys() if node.trigger is not None else set()
        )
        return frozenset(node.save.get(key, key) for key in keys) if renamed else keys

    @property
    def all_nodes_known(self) -> bool:
        """True if every node could be read and its kind is known."""
        return all(node is not None and self.kind(node) for node in self.nodes.values())

    def state_keys(self) -> set[str]:
        """Keys that the file declares or a node writes."""
        keys = set(self.state)
        for node in self.nodes.values():
            if node is not None:
                keys |= self.written(node)
        return keys


def _section(tree: Tree, name: str) -> list[tuple[str, Any]]:
    raw = tree.at((name,))
    return list(raw.items()) if isinstance(raw, dict) else []


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


_DISPENSABLE = {
    "timeout",
    "retry",
    "sampling",
    "grammar",
    "adapter",
    "kv",
    "drafter",
    "trigger",
    "max_parallel",
}
"""Keys of a node without which the rest of it can still be judged."""


def _read(part: type[S], raw: Any) -> S | None:
    """The part, without keys that it does not know or can spare; None if more is wrong."""
    for _ in range(2):
        try:
            return part.model_validate_json(json.dumps(raw), strict=True)
        except ValidationError as error:
            problems = error.errors(include_url=False)
            spare: list[tuple[int | str, ...]] = []
            for problem in problems:
                place = problem["loc"]
                if place and place[0] in _DISPENSABLE:
                    spare.append(place[:1])
                elif problem["type"] == "extra_forbidden":
                    spare.append(place)
                else:
                    return None
            raw = _without(raw, spare)
    return None


def _without(raw: dict[str, Any], places: list[tuple[int | str, ...]]) -> dict[str, Any]:
    pruned: dict[str, Any] = json.loads(json.dumps(raw))
    for *parents, last in places:
        container: Any = pruned
        for step in parents:
            container = container[step]
        container.pop(last, None)
    return pruned
