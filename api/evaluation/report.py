"""A result as one HTML page that needs nothing else: tables, and quality against tokens as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from api.evaluation.table import NAMES, Grid, compared, grids, number

COLOURS = ("#1b6ca8", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0f766e")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 520, 300, 56, 44, 14, 16
STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.25rem .7rem;"
    "border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)


def page(result: Mapping[str, Any]) -> str:
    """The page; every text of the result is escaped, and it holds no script."""
    title = f"Evaluation: {result['suite']}"
    parts = [f"<h1>{escape(title)}</h1>"]
    for name in ("exact_match", "f1"):
        points = [
            (one["workflow"], one["tokens"], one[name])
            for one in compared(result)
            if one["tokens"] is not None and one[name] is not None
        ]
        if points:
            parts.append(
                f"<h2>{escape(NAMES[name])} against tokens</h2>{plot(points, NAMES[name])}"
            )
    for heading, grid in grids(result):
        parts.append(f"<h2>{escape(heading)}</h2>{_table(grid)}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(grid: Grid) -> str:
    head, *lines = grid
    rows = ["".join(f"<th>{escape(one)}</th>" for one in head)]
    rows += ["".join(f"<td>{escape(one)}</td>" for one in line) for line in lines]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def plot(points: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], name: str) -> str:
    """Mean tokens of a question (x) against a score from 0 to 1 (y), with both intervals.

    `points` are label, tokens and score, the latter two as means with bounds.
    """
    most = max(tokens["high"] for _, tokens, _ in points) * 1.1 or 1.0

    def x(value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * value / most:.1f}"

    def y(value: float) -> str:
        return f"{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value:.1f}"

    shapes = [_line(x(0), y(0), x(most), y(0), "#444"), _line(x(0), y(0), x(0), y(1), "#444")]
    for step in range(6):
        shapes.append(_text(x(most * step / 5), HEIGHT - BOTTOM + 18, number(most * step / 5)))
        shapes.append(_text(str(LEFT - 24), float(y(step / 5)) + 4, f"{step / 5:.1f}"))
        shapes.append(_line(x(0), y(step / 5), x(most), y(step / 5), "#eee"))
    shapes.append(_text(x(most / 2), HEIGHT - 6, "tokens per question"))
    for place, (label, tokens, score) in enumerate(points):
        colour = COLOURS[place % len(COLOURS)]
        across, up = x(tokens["mean"]), y(score["mean"])
        shapes.append(_line(x(tokens["low"]), up, x(tokens["high"]), up, colour))
        shapes.append(_line(across, y(score["low"]), across, y(score["high"]), colour))
        tip = f"{label}: {name} {number(score['mean'])}, {number(tokens['mean'])} tokens"
        shapes.append(
            f'<circle cx="{across}" cy="{up}" r="5" fill="{colour}">'
            f"<title>{escape(tip)}</title></circle>"
        )
        height = HEIGHT + 16 + 18 * place
        shapes.append(f'<circle cx="{LEFT}" cy="{height}" r="5" fill="{colour}"/>')
        shapes.append(_text(str(LEFT + 12), height + 4, label, "start"))
    whole = HEIGHT + 18 * len(points) + 10
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {whole}" width="{WIDTH}" height="{whole}" '
        f'font-family="sans-serif" font-size="12">{"".join(shapes)}</svg>'
    )


def _line(x1: str, y1: str, x2: str, y2: str, colour: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>'


def _text(x: str, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
