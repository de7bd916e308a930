"""A workflow as a mermaid flowchart, with the conditions on its edges."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workflows.schema import END, START, EdgeSpec, NodeSpec, WorkflowSpec

MAX_LABEL = 120
"""Longest label, in characters; the rest is cut."""

_SPECIAL = re.compile(r"[^\w \-.,()=:/+*!?\[\]{}$']")


def mermaid(spec: WorkflowSpec) -> str:
    """The flowchart; nodes are numbered because names such as `end` mean something to mermaid."""
    ids = {name: f"n{number}" for number, name in enumerate([START, *spec.nodes, END])}
    lines = ["flowchart TD", f'  {ids[START]}(["{START}"])']
    lines += [f"  {ids[name]}{_shape(name, node)}" for name, node in spec.nodes.items()]
    lines.append(f'  {ids[END]}(["{END}"])')
    lines += [f"  {line}" for line in _edges(spec.edges, ids)]
    return "\n".join(lines) + "\n"


def _shape(name: str, node: NodeSpec) -> str:
    """A box with name and kind; a parallel map has double sides and says what it runs over."""
    if node.over is None:
        return f'["{_escape(name)}<br/>{_escape(node.use)}"]'
    over = f"each {node.item} of {node.over}"
    return f'[["{_escape(name)}<br/>{_escape(node.use)}<br/>{_escape(over)}"]]'


def _edges(edges: list[EdgeSpec], ids: dict[str, str]) -> Iterator[str]:
    conditional = {
        edge.source for edge in edges if isinstance(edge.source, str) and edge.when is not None
    }
    for number, edge in enumerate(edges):
        targets = [edge.target] if isinstance(edge.target, str) else edge.target
        if isinstance(edge.source, list):
            # A small node shows that the join waits for all of its sources.
            join = f"j{number}"
            yield f'{join}{{{{"all of"}}}}'
            for source in edge.source:
                yield f"{ids[source]} --> {join}"
            origin, label = join, None
        else:
            origin, label = ids[edge.source], edge.when
            if label is None and edge.source in conditional:
                label = "else"
        arrow = "-->" if label is None else f'-->|"{_escape(label)}"|'
        for target in targets:
            yield f"{origin} {arrow} {ids[target]}"


def _escape(text: str) -> str:
    """Text as it may stand between quotes: what mermaid or HTML would read becomes an entity."""
    flat = " ".join(text.split())
    cut = flat if len(flat) <= MAX_LABEL else flat[: MAX_LABEL - 1] + "…"
    return _SPECIAL.sub(lambda found: f"#{ord(found[0])};", cut)
