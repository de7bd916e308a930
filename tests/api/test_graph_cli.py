"""`ragwright graph`: built, extended, searched and shown from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Ragwright

FACTS = "Ada\twrote\tNotes\nNotes\tdescribe\tEngine\nBabbage\tdesigned\tEngine\n"


@pytest.fixture
def graph(ragwright: Ragwright, tmp_path: Path) -> Path:
    file = tmp_path / "facts.tsv"
    file.write_text(FACTS, encoding="utf-8")
    status, out, _ = ragwright("graph", "build", file, "--out", tmp_path / "g")
    assert status == 0 and "3 facts about 4 entities (3 added, 0 known already)" in out
    return tmp_path / "g"


def shown(ragwright: Ragwright, *arguments: object) -> dict[str, Any]:
    status, out, errors = ragwright("graph", *arguments, "--json")
    assert status == 0, errors
    value: dict[str, Any] = json.loads(out)
    return value


def test_search_has_the_shape_of_index_search(ragwright: Ragwright, graph: Path) -> None:
    found = shown(ragwright, "search", graph, "What did Ada write?", "-k", 2)
    (result,) = found["results"]
    assert [link["entity"] for link in result["linked"]] == ["Ada"]
    hit = result["hits"][0]
    assert hit["text"] == "Ada wrote Notes" and hit["source"].endswith("facts.tsv:1")
    assert {"document_id", "passage_id", "title", "start", "end", "score"} <= set(hit)
    status, out, _ = ragwright("graph", "search", graph, "ada")
    assert status == 0 and "'ada' is Ada (name, 1.00)" in out and "Ada wrote Notes" in out


def test_add_and_show(ragwright: Ragwright, graph: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.nt"
    more.write_text("<http://x/Ada> <http://x/met> <http://x/Babbage> .\n", encoding="utf-8")
    report = shown(ragwright, "add", graph, more, tmp_path / "facts.tsv")
    assert (report["added"], report["duplicates"], report["triples"]) == (1, 3, 4)
    whole = shown(ragwright, "show", graph)
    assert whole["relations"]["wrote"] == 1 and whole["triples"] == 4
    around = shown(ragwright, "show", graph, "engine")
    assert {fact["head"] for fact in around["facts"]} == {"Notes", "Babbage"}
    paths = shown(ragwright, "show", graph, "Notes", "--to", "Babbage")
    assert [path["length"] for path in paths["paths"]] == [2]
    status, out, _ = ragwright("graph", "show", graph, "Notes", "--to", "Babbage")
    assert status == 0 and "Notes describe Engine; Babbage designed Engine" in out
    status, out, _ = ragwright("graph", "show", graph, "Notes", "--limit", 1)
    assert out.count("\n") == 2 and "... and more" in out
    status, out, _ = ragwright("graph", "show", graph)
    assert "4 facts about 6 entities" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["build", "BAD", "--out", "OUT"], "bad.tsv:2: 1 columns"),
        (["build", "nowhere.tsv", "--out", "OUT"], "no such file"),
        (["search", "nowhere", "x"], "not a graph folder"),
        (["show", "GRAPH", "Adda"], "no entity 'Adda'; did you mean one of 'Ada'"),
        (["show", "GRAPH", "--to", "Ada"], "give an ENTITY"),
        (["search", "GRAPH", " "], "is empty"),
        (["search", "GRAPH", "x", "-k", "0"], "k=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    ragwright: Ragwright, graph: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    (tmp_path / "bad.tsv").write_text("a\tb\tc\nd\n", encoding="utf-8")
    places = {"BAD": tmp_path / "bad.tsv", "OUT": tmp_path / "out", "GRAPH": graph}
    status, out, errors = ragwright("graph", *(places.get(a, a) for a in arguments))
    assert (status, out) == (2, "")
    assert problem in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
