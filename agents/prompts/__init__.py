"""Prompts as files: one YAML per method, read through importlib.resources."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from ruamel.yaml import YAML


@cache
def load_prompts(method: str) -> dict[str, Any]:
    """The prompts of a method: the parsed `agents/prompts/METHOD.yaml`."""
    text = files("agents.prompts").joinpath(f"{method}.yaml").read_text(encoding="utf-8")
    prompts: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return prompts


def fill(prompt: str, **values: str) -> str:
    """A prompt with its `$name` places filled; what is filled in is never read as a template."""
    return Template(prompt).substitute(values)
