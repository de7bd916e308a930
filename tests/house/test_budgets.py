"""A file has at most 400 lines, a function at most 60."""

from __future__ import annotations

import ast

from tests.house.source import Source, sources

FILE_LINES = 400
FUNCTION_LINES = 60

RAISED: dict[str, tuple[int, str]] = {}
"""Place (`file` or `file:function`) -> (its own limit, the reason for it)."""


def lengths(source: Source) -> dict[str, tuple[int, int]]:
    """Place -> (lines, general limit) for the file and each of its functions."""
    found = {source.place: (len(source.text.splitlines()), FILE_LINES)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            place = f"{source.place}:{node.name}"
            found[place] = max(found.get(place, (0, 0)), (lines, FUNCTION_LINES))
    return found


def over(source: Source) -> list[str]:
    """The places of one file that are longer than their limit."""
    return [
        f"{place}: {lines} lines, {RAISED.get(place, (limit, ''))[0]} allowed"
        for place, (lines, limit) in lengths(source).items()
        if lines > RAISED.get(place, (limit, ""))[0]
    ]


def test_files_and_functions_keep_their_budgets() -> None:
    assert [line for source in sources(*_FOLDERS) for line in over(source)] == []


def test_raised_budgets_are_still_needed() -> None:
    measured = {k: v for source in sources(*_FOLDERS) for k, v in lengths(source).items()}
    for place, (_, reason) in RAISED.items():
        assert reason, f"{place} is raised without a reason"
        lines, limit = measured.get(place, (0, 0))
        assert lines > limit, f"{place} keeps the general limit again; drop its row"


def test_the_counter_counts() -> None:
    body = "".join(f"    x = {i}\n" for i in range(FUNCTION_LINES))
    long = Source(_HERE.path, _HERE.module, f"async def f():\n{body}")
    assert over(long) == [f"{_HERE.place}:f: 61 lines, 60 allowed"]
    fine = Source(_HERE.path, _HERE.module, f"def f():\n{body}".removesuffix("    x = 59\n"))
    assert over(fine) == []
    assert over(Source(_HERE.path, _HERE.module, "x = 1\n" * 401)) != []


_FOLDERS = ("api", "workflows", "agents", "graphs", "retrieval", "inference", "tests")
_HERE = next(source for source in sources("tests") if source.place.endswith("test_budgets.py"))
