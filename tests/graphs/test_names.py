"""Entities by identity, name, words and spelling, and inside a text."""

from __future__ import annotations

import pytest

from graphs.build import build_graph
from graphs.errors import GraphInputError, UnknownEntity
from graphs.facts import Fact, label
from graphs.loaders import Loaded
from graphs.store import GraphStore


@pytest.mark.parametrize(
    ("mention", "entity", "how"),
    [
        ("Marie_Curie", "Marie_Curie", "exact"),
        ("marie  curie", "Marie_Curie", "name"),
        ("MARIE-CURIE!", "Marie_Curie", "name"),
        ("products of uranium fission", "Nuclear_fission", "words"),
        ("Mari Curi", "Marie_Curie", "spelling"),
        ("polonim", "Polonium", "spelling"),
    ],
)
def test_how_a_mention_is_matched(store: GraphStore, mention: str, entity: str, how: str) -> None:
    best = store.find(mention)[0]
    assert (best.entity, best.how) == (entity, how)
    assert 0 < best.score <= 1
    assert (best.score == 1) == (how in ("exact", "name"))


def test_words_and_spelling_are_guesses_and_are_not_taken_for_sure(store: GraphStore) -> None:
    assert store.entity("radium").entity == "Radium"
    with pytest.raises(UnknownEntity, match=r"no entity 'curie'; did you mean one of .*Pierre"):
        store.entity("curie")
    with pytest.raises(UnknownEntity, match="search the graph"):
        store.entity("zzzz")


def test_a_name_of_several_entities_is_not_decided(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    facts = [Fact("Q1", "in", "Q9"), Fact("Q2", "in", "Q9")]
    names = {"Q1": ["Springfield"], "Q2": ["Springfield"]}
    build_graph(Loaded(facts, names), tmp_path / "g")
    store = GraphStore.open(tmp_path / "g")
    assert [match.entity for match in store.find("springfield")] == ["Q1", "Q2"]
    with pytest.raises(UnknownEntity, match="stands for several entities; give 'Q1', 'Q2'"):
        store.entity("springfield")


@pytest.mark.parametrize(
    ("text", "entities", "how"),
    [
        ("Where was Marie Curie's husband Pierre Curie born?", ["Marie_Curie", "Pierre_Curie"], 1),
        ("polonium, radium and the capital of France", ["Polonium", "Radium", "France"], 1),
        ("who discovered poloniun", ["Polonium"], 0),
        ("what is nuclear about it", ["Nuclear_fission"], 0),
        ("of the and", [], 0),
    ],
)
def test_linking(store: GraphStore, text: str, entities: list[str], how: int) -> None:
    links = store.link(text)
    assert [link.entity for link in links] == entities
    assert all((link.how == "name") == bool(how) for link in links)


def test_the_longest_name_counts(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    build_graph([Fact("York", "r", "New York"), Fact("New York City", "r", "York")], tmp_path / "g")
    store = GraphStore.open(tmp_path / "g")
    assert [m.entity for m in store.link("from New York City to york")] == ["New York City", "York"]


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_nothing_cannot_be_looked_for(store: GraphStore, text: str) -> None:
    with pytest.raises(GraphInputError, match="is empty"):
        store.link(text)
    with pytest.raises(GraphInputError, match="is empty"):
        store.find(text)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("has_symptom", "has symptom"),
        ("http://example.org/ns#bornIn", "born In"),
        ("http://example.org/Ada_Lovelace/", "Ada Lovelace"),
        ("urn:isbn:123", "123"),
        ("http://www.w3.org/1999/02/22-rdf-syntax-ns#type", "is a"),
        ("note: a thing", "note: a thing"),
        ("__", "__"),
    ],
)
def test_labels(name: str, shown: str) -> None:
    assert label(name) == shown
