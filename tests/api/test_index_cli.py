"""`ragwright index build|add|search` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from api.cli.index import index
from api.errors import exit_status

CORPUS = Path("corpus.jsonl")
ROWS = [
    {"id": "p1", "title": "Marie Curie", "text": "Marie Curie discovered polonium.", "year": 1898},
    {"id": "p2", "title": "Otto Hahn", "text": "Otto Hahn split the atom in Berlin.", "year": 1938},
    {"id": "p3", "title": "Ada Lovelace", "text": "Lovelace wrote about engines.", "year": 1843},
]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds corpus.jsonl."""
    monkeypatch.chdir(tmp_path)
    CORPUS.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def call(*arguments: str) -> str:
    """Standard output of a command that works."""
    result = CliRunner().invoke(index, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def call_json(*arguments: str) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    found: dict[str, Any] = json.loads(call(*arguments, "--json"))
    return found


def refused(*arguments: str) -> str:
    """The one-line message of a command that ends with status 2."""
    result = CliRunner().invoke(index, arguments)
    assert isinstance(result.exception, Exception)
    assert exit_status(result.exception) == 2, result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_build_add_search(tmp_path: Path) -> None:
    report = call_json("build", "corpus.jsonl", "--out", "idx")
    assert (report["documents"], report["passages"], report["embedded"]) == (3, 3, 3)
    Path("more.txt").write_text("Grace Hopper wrote a compiler.", encoding="utf-8")
    assert call_json("add", "idx", "more.txt")["embedded"] == 1
    (result,) = call_json("search", "idx", "who found polonium", "-k", "2")["results"]
    assert result["query"] == "who found polonium"
    assert len(result["hits"]) == 2
    hit = result["hits"][0]
    assert {
        key: hit[key] for key in ("document_id", "passage_id", "title", "source", "start", "end")
    } == {
        "document_id": "p1",
        "passage_id": "p1#0",
        "title": "Marie Curie",
        "source": "corpus.jsonl",
        "start": 0,
        "end": 32,
    }
    assert hit["text"] == ROWS[0]["text"]
    assert isinstance(hit["score"], float)
    (result,) = call_json("search", "idx", "compiler", "--retriever", "bm25")["results"]
    assert result["hits"][0]["document_id"] == "more.txt"
    assert len(result["hits"]) == 4


def test_query_files_give_a_list_in_their_order() -> None:
    call("build", "corpus.jsonl", "--out", "idx", "--chunk-tokens", "64", "--overlap", "8")
    Path("q.txt").write_text("polonium\n\natom Berlin\n", encoding="utf-8")
    Path("q.jsonl").write_text(
        '{"id": "x", "query": "engines"}\n{"id": 5, "query": "atom"}\n', encoding="utf-8"
    )
    found = call_json("search", "idx", "--queries", "q.txt", "-k", "1")["results"]
    assert [(r["id"], r["query"], r["hits"][0]["document_id"]) for r in found] == [
        ("1", "polonium", "p1"),
        ("3", "atom Berlin", "p2"),
    ]
    found = call_json("search", "idx", "--queries", "q.jsonl", "-k", "1")["results"]
    assert [(r["id"], r["hits"][0]["document_id"]) for r in found] == [("x", "p3"), ("5", "p2")]


def test_people_get_readable_lines() -> None:
    assert "3 documents, 3 passages (3 embedded, 0 reused)" in call(
        "build", "corpus.jsonl", "--out", "idx"
    )
    lines = call("search", "idx", "polonium", "-k", "1").splitlines()
    assert "Marie Curie  (p1 [0:32])" in lines[0]
    assert lines[1].strip() == "Marie Curie discovered polonium."


def test_bad_input_is_one_line_and_status_two() -> None:
    call("build", "corpus.jsonl", "--out", "idx")
    Path("empty.txt").write_text("\n", encoding="utf-8")
    Path("q.jsonl").write_text('{"id": "x"}\n', encoding="utf-8")
    Path("folder").mkdir()
    Path("folder/latin.txt").write_bytes(b"\xe9")
    cases = {
        ("build", "absent", "--out", "o"): "absent: no such file or folder",
        ("build", "folder", "--out", "o"): "latin.txt: not UTF-8",
        ("build", "corpus.jsonl", "--out", "folder"): "exists and is not an index",
        ("build", "corpus.jsonl", "--out", "o", "--chunk-tokens", "9"): "tokens=9",
        ("add", "absent", "corpus.jsonl"): "no such index folder",
        ("add", "idx", "empty.txt"): "holds no text",
        ("search", "absent", "x"): "no such index folder",
        ("search", "folder", "x"): "not an index",
        ("search", "idx", " "): "is empty",
        ("search", "idx", "x", "-k", "0"): "k=0 must be at least 1",
        ("search", "idx", "x", "--retriever", "denze"): "did you mean 'dense'",
        ("search", "idx", "--queries", "absent.txt"): "give the path of a query file",
        ("search", "idx", "--queries", "empty.txt"): "holds no query",
        ("search", "idx", "--queries", "q.jsonl"): "q.jsonl:1: query=None",
    }
    for arguments, message in cases.items():
        assert message in refused(*arguments), arguments
    assert not Path("o").exists()
    both = CliRunner().invoke(index, ["search", "idx"])
    assert both.exit_code == 2
    assert "either a QUERY or --queries" in both.output
