"""Prompts for self-distillation: templates and what fills them, drawn from one seed."""

from __future__ import annotations

import random
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import InferenceInputError

SEEDS = Path(__file__).with_name("seeds.toml")
TRIES = 40
"""Draws of one prompt before its kind counts as used up."""


@dataclass(frozen=True, slots=True)
class Seed:
    """A prompt and the kind of task it is."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A document of the caller's: its title and its text."""

    title: str
    text: str


def read_passages(folder: Path) -> list[Passage]:
    """The Markdown and plain-text files below `folder`, whose first line is the title."""
    found: list[Passage] = []
    for path in sorted([*folder.rglob("*.md"), *folder.rglob("*.txt")]):
        title, _, text = path.read_text(encoding="utf-8").strip().partition("\n")
        if text.strip():
            found.append(Passage(title.lstrip("# ").strip(), text.strip()))
    if len(found) < 2:
        raise InferenceInputError(
            f"{str(folder)!r} holds {len(found)} .md and .txt files with a title and a text; "
            "give a folder with at least two"
        )
    return found


def seeds(passages: Sequence[Passage] = (), seed: int = 0, file: Path = SEEDS) -> list[Seed]:
    """Distinct prompts of all kinds, shuffled; kinds that need passages only where there are."""
    draw = random.Random(seed)
    found: dict[str, Seed] = {}
    for kind, recipe in tomllib.loads(file.read_text(encoding="utf-8")).items():
        if "{passage}" in "".join(recipe["templates"]) and not passages:
            continue
        wanted = len(found) + recipe["count"]
        for _ in range(TRIES * recipe["count"]):
            if len(found) == wanted:
                break
            text = _filled(recipe, passages, draw)
            found.setdefault(text, Seed(kind, text))
    every = list(found.values())
    draw.shuffle(every)
    return every


def _filled(recipe: Mapping[str, Any], passages: Sequence[Passage], draw: random.Random) -> str:
    template: str = draw.choice(recipe["templates"])
    blanks = {blank for _, blank, _, _ in string.Formatter().parse(template) if blank}
    values = {name: draw.choice(options) for name, options in recipe["blanks"].items()}
    if "passage" in blanks:
        first, other = draw.sample(passages, 2)
        values |= {"passage": first.text, "title": first.title, "other": other.text}
    return template.format(**values)
