"""Results of an evaluation as text: measures down, workflows across."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAMES = {
    "exact_match": "exact match",
    "f1": "F1",
    "unforced_exact_match": "exact match, forced as wrong",
    "supporting_recall": "supporting recall",
    "supporting_recall_equal": "recall, equal passages",
    "passages": "passages read",
    "rounds": "rounds",
    "prompt_tokens": "prompt tokens",
    "cached_tokens": "cached tokens",
    "completion_tokens": "generated tokens",
    "tokens": "tokens",
    "model_calls": "model calls",
    "retrievals": "searches",
    "seconds": "seconds",
}
COUNTS = {
    "n": "questions",
    "failed": "failed (scored 0)",
    "forced": "forced answers",
    "forced_right": "forced and right",
    "malformed_turns": "malformed turns",
}
LONGEST = 24
"""Characters of a workflow's name above which the tables call it by a number."""
Grid = list[list[str]]


def cell(value: Any) -> str:
    """A figure for a person: a mean with its bounds, a count, or `-` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        if "mean" in value:
            mean, low, high = (number(value[key]) for key in ("mean", "low", "high"))
            return f"{mean} [{low}, {high}]"
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "-"
    return str(value)


def number(value: float) -> str:
    """Three decimals below 10, one below 1,000, none above."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.{1 if abs(value) < 1000 else 0}f}"


def grids(result: Mapping[str, Any]) -> Iterator[tuple[str, Grid]]:
    """The tables of a result, each with its heading; the first row of a grid names its columns."""
    if "retrievers" in result:
        rows = result["retrievers"]
        keys = [key for key in rows[0] if key != "retriever"]
        lines = [[key, *(cell(row[key]) for row in rows)] for key in keys]
        yield f"{result['suite']}", [["", *(row["retriever"] for row in rows)], *lines]
        return
    workflows = compared(result)
    grid: Grid = [["", *(one["workflow"] for one in workflows)]]
    for key in ("n", "failed", *NAMES, "forced", "forced_right", "malformed_turns", "endings"):
        if any(one[key] not in (None, {}) for one in workflows):
            name = NAMES.get(key) or COUNTS.get(key, key)
            grid.append([name, *(cell(one[key]) for one in workflows)])
    yield f"{result['suite']}, {result['n']} questions; means with 95 % intervals", grid
    if result["paired"]:
        first = result["paired"][0]["against"]
        yield f"Difference from {first}, question by question", _down(result["paired"])
    for hops in sorted({row["hops"] for row in result["hops"]}):
        rows = [row for row in result["hops"] if row["hops"] == hops]
        yield f"{hops} {'hop' if hops == 1 else 'hops'}", _down(rows)


def compared(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The workflows of a result, with intervals in place of means; none where it ranks."""
    found = result.get("workflows", {}).items()
    return [{**one, **one["intervals"], "workflow": name} for name, one in found]


def _down(rows: Sequence[Mapping[str, Any]]) -> Grid:
    grid: Grid = [["", *(row["workflow"] for row in rows)]]
    for key in ("n", "failed", *NAMES):
        if any(row.get(key) is not None for row in rows):
            name = NAMES.get(key) or COUNTS[key]
            grid.append([name, *(cell(row.get(key)) for row in rows)])
    return grid


def text_of(result: Mapping[str, Any]) -> str:
    """All tables as aligned text; long names of workflows are told once, by number."""
    labels = list(result.get("workflows", ()))
    short = {name: name for name in labels}
    parts = []
    if any(len(name) > LONGEST for name in labels):
        short = {name: f"{at} {name.partition(':')[0]}" for at, name in enumerate(labels, start=1)}
        parts.append("\n".join(f"{at} = {name}" for at, name in enumerate(labels, start=1)))
    for heading, grid in grids(result):
        grid[0] = [short.get(name, name) for name in grid[0]]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines = [
            "  ".join([f"{line[0]:<{widths[0]}}", *_right(line[1:], widths[1:])]) for line in grid
        ]
        parts.append("\n".join([heading, *(line.rstrip() for line in lines)]))
    return "\n\n".join(parts)


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"{one:>{width}}" for one, width in zip(cells, widths, strict=True)]
