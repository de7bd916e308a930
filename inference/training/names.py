"""Invented names: of people, towns, rivers, books, ships, companies."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

LASTS = {"bridge": ["Bridge"], "museum": ["Museum"], "school": ["Academy", "Grammar School"]}

NAMESAKES = 0.3
"""Share of the people who are called like one before them."""

Parts = Mapping[str, Sequence[str]]


def draw_name(draw: random.Random, kind: str, parts: Parts, known: Sequence[str]) -> str:
    """A name for an entity of `kind`; some people take the last name of one of the `known`."""
    if kind == "person":
        last = _stem(draw, parts, "personal")
        if known and draw.random() < NAMESAKES:
            last = draw.choice(known).split()[-1]
        return f"{draw.choice(parts['first'])} {last}"
    if kind in ("novel", "film", "opera"):
        return f"The {draw.choice(parts['adjective'])} {draw.choice(parts['noun'])}"
    if kind == "town":
        return _stem(draw, parts, "local")
    if kind in ("river", "lake"):
        return f"{kind.title()} {_stem(draw, parts, 'water')}"
    last = draw.choice(parts["ship"] if kind == "ship" else LASTS.get(kind, parts["trade"]))
    return f"{_stem(draw, parts, 'personal')} {last}"


def _stem(draw: random.Random, parts: Parts, ending: str) -> str:
    chosen = (draw.choice(parts[part]) for part in ("onset", "vowel", "middle", ending))
    return "".join(chosen).capitalize()
