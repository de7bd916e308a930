"""The graph: edges lead somewhere, every node is reached, and every run can end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inference.suggest import nearest
from workflows.checks.draft import Draft
from workflows.schema import END, START, EdgeSpec
from workflows.source import Path


@dataclass
class _Graph:
    """Edges between single nodes: all that can be taken, and those taken whatever happens."""

    possible: dict[str, set[str]] = field(default_factory=dict)
    certain: dict[str, set[str]] = field(default_factory=dict)

    def add(self, sources: Iterable[str], targets: Iterable[str], certain: bool) -> None:
        for source in sources:
            self.possible.setdefault(source, set()).update(targets)
            if certain:
                self.certain.setdefault(source, set()).update(targets)


def check_graph(draft: Draft) -> None:
    """Endpoints of every edge; then, if all edges can be read, reachability and loops."""
    before = len(draft.faults)
    for index, edge in enumerate(draft.edges):
        if edge is not None:
            _check_ends(draft, ("edges", index), edge)
    readable = len(draft.faults) == before and None not in draft.edges and draft.edges
    if readable:
        graph = _follow(draft)
        _check_parallel_writes(draft)
        _check_paths(draft, graph)


def _check_ends(draft: Draft, place: Path, edge: EdgeSpec) -> None:
    for side, value, wrong in (("from", edge.source, END), ("to", edge.target, START)):
        at = (*place, side)
        names = value if isinstance(value, list) else [value]
        if not names:
            draft.add(at, "empty_edge", f"`{side}` must name at least one node")
        for position, name in enumerate(names):
            spot = (*at, position) if isinstance(value, list) else at
            if name in names[:position]:
                draft.add(spot, "duplicate_node", f"{name!r} stands twice in `{side}`; remove one")
            elif name == wrong:
                verb = "leaves" if side == "from" else "enters"
                remedy = "remove it" if side == "from" else "lead it to the first node instead"
                draft.add(spot, "bad_endpoint", f"no edge {verb} {wrong!r}; {remedy}")
            elif name not in (START, END) and name not in draft.nodes:
                other = START if side == "from" else END
                message = f"unknown node {name!r}; {nearest(name, [*draft.nodes, other])}"
                draft.add(spot, "unknown_node", message)
    if isinstance(edge.source, list):
        if START in edge.source:
            message = "a join waits for nodes, not for 'start'; remove it from the list"
            draft.add((*place, "from"), "bad_endpoint", message)
        if edge.when is not None:
            message = (
                "a join has no condition, because it waits for all of its sources; join into a "
                "node and put the condition on the edges that leave it"
            )
            draft.add((*place, "when"), "join_condition", message, key=True)


def _follow(draft: Draft) -> _Graph:
    """The edges that can be taken; an edge behind an unconditional one is a fault."""
    graph = _Graph()
    leaving: dict[str, list[tuple[int, EdgeSpec]]] = {}
    for index, edge in enumerate(draft.edges):
        assert edge is not None, "checked by the caller"
        if isinstance(edge.source, list):
            graph.add(edge.source, _targets(edge), certain=True)
        else:
            leaving.setdefault(edge.source, []).append((index, edge))
    for source, edges in leaving.items():
        closed_by: int | None = None
        for index, edge in edges:
            if closed_by is not None:
                line = draft.tree.mark(("edges", closed_by)).line
                message = (
                    f"this edge out of {source!r} is never taken, because the one on line {line} "
                    "has no condition; put it first with a `when`, or use one edge `to: [a, b]` "
                    "to go to both"
                )
                draft.add(("edges", index), "shadowed_edge", message)
                continue
            graph.add([source], _targets(edge), certain=edge.when is None and len(edges) == 1)
            closed_by = index if edge.when is None else None
    return graph


def _targets(edge: EdgeSpec) -> list[str]:
    return [edge.target] if isinstance(edge.target, str) else edge.target


def _check_parallel_writes(draft: Draft) -> None:
    """Branches that start side by side must not write the same key in their first step."""
    for index, edge in enumerate(draft.edges):
        if edge is None or isinstance(edge.target, str):
            continue
        writers: dict[str, str] = {}
        for target in edge.target:
            node = draft.nodes.get(target)
            for key in sorted(draft.written(node)) if node is not None else []:
                if key in writers:
                    message = (
                        f"{writers[key]!r} and {target!r} run side by side and both write "
                        f"state.{key}; rename one with `save`"
                    )
                    draft.add(("edges", index, "to"), "parallel_write", message)
                writers.setdefault(key, target)


def _check_paths(draft: Draft, graph: _Graph) -> None:
    if START not in graph.possible:
        first = next(iter(draft.nodes), "NODE")
        message = f"no edge leaves 'start'; add {{from: start, to: {first}}}"
        draft.add(("edges",), "no_start", message, key=True)
        return
    reached = _reach(graph.possible, [START])
    ending = _reach(_reversed(graph.possible), [END])
    endless: set[str] = set()
    for loop in _loops(graph.certain):
        endless |= set(loop)
        path = " -> ".join([*loop, loop[0]])
        message = f"the loop {path} has no condition and would never end; put `when` on one edge"
        draft.add(_edge_place(draft, loop), "endless_loop", message)
    endless |= _reach(_reversed(graph.certain), endless)
    for name in draft.nodes:
        place: Path = ("nodes", name)
        if name not in reached:
            message = f"node {name!r} is never reached from 'start'; add an edge to it or remove it"
            draft.add(place, "unreachable_node", message, key=True)
        elif name not in ending and name not in endless:
            message = f"no path leads from node {name!r} to 'end'; add {{from: {name}, to: end}}"
            draft.add(place, "no_way_to_end", message, key=True)


def _edge_place(draft: Draft, loop: list[str]) -> Path:
    """The edge that closes a loop, as far as it is found."""
    last, first = loop[-1], loop[0]
    for index, edge in enumerate(draft.edges):
        if edge is not None and last in _sources(edge) and first in _targets(edge):
            return ("edges", index)
    return ("edges",)


def _sources(edge: EdgeSpec) -> list[str]:
    return [edge.source] if isinstance(edge.source, str) else edge.source


def _reversed(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    back: dict[str, set[str]] = {}
    for source, targets in edges.items():
        for target in targets:
            back.setdefault(target, set()).add(source)
    return back


def _reach(edges: Mapping[str, set[str]], begin: Iterable[str]) -> set[str]:
    """Everything that edges lead to from the beginning, which is included."""
    seen = set(begin)
    queue = list(seen)
    while queue:
        for target in edges.get(queue.pop(), ()):
            if target not in seen:
                seen.add(target)
                queue.append(target)
    return seen


def _loops(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """One shortest loop per set of nodes that can reach each other."""
    loops: list[list[str]] = []
    used: set[str] = set()
    for origin in edges:
        if origin in used:
            continue
        before: dict[str, str] = {}
        queue = [origin]
        for node in queue:
            for target in sorted(edges.get(node, ())):
                if target == origin:
                    path = [node]
                    while path[-1] != origin:
                        path.append(before[path[-1]])
                    loops.append(path[::-1])
                    used |= set(path)
                    break
                if target not in before:
                    before[target] = node
                    queue.append(target)
            else:
                continue
            break
    return loops
