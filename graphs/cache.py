"""Graphs that are made on the way, for files given by path to a run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from graphs.build import build_graph
from graphs.manifest import is_graph
from inference.models import models_home


def graphs_home() -> Path:
    """Where cached graphs lie: `graphs/` beside the folder of the models."""
    return models_home().parent / "graphs"


def graph_for(path: str | Path) -> Path:
    """The graph folder of a path: itself if it is one, else made of the files there.

    It is kept in the cache, one per absolute path, and is brought up to date: the files are read
    each time, and nothing is published when they say what they said before. Raises
    GraphInputError for files that cannot be used.
    """
    root = Path(path)
    if is_graph(root):
        return root
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    plain = "".join(letter if letter.isalnum() else "-" for letter in root.resolve().name)[:40]
    out = graphs_home() / f"{plain or 'graph'}-{key}"
    build_graph(root, out)
    return out
