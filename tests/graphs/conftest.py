"""A small family of facts, and its graph on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphs.build import build_graph
from graphs.facts import Fact
from graphs.store import GraphStore

FACTS = [
    Fact("Marie_Curie", "discovered", "Polonium", "facts.tsv", 1),
    Fact("Marie_Curie", "discovered", "Radium", "facts.tsv", 2),
    Fact("Marie_Curie", "married", "Pierre_Curie", "facts.tsv", 3),
    Fact("Pierre_Curie", "born_in", "Paris", "facts.tsv", 4),
    Fact("Marie_Curie", "born_in", "Warsaw", "facts.tsv", 5),
    Fact("Warsaw", "capital_of", "Poland", "facts.tsv", 6),
    Fact("Paris", "capital_of", "France", "facts.tsv", 7),
    Fact("Polonium", "named_after", "Poland", "facts.tsv", 8),
    Fact("Otto_Hahn", "discovered", "Nuclear_fission", "facts.tsv", 9),
    Fact("Marie_Curie", "admired", "Marie_Curie", "facts.tsv", 10),
]


@pytest.fixture(scope="session")
def graph_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of `FACTS`."""
    out = tmp_path_factory.mktemp("graphs") / "curies"
    build_graph(FACTS, out)
    return out


@pytest.fixture(scope="session")
def store(graph_path: Path) -> GraphStore:
    """It, opened."""
    return GraphStore.open(graph_path)
