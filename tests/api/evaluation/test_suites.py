"""Suites: what they hold, what they refuse, and that a poisoned one shows nothing of the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api.evaluation.errors import SuiteInputError
from api.evaluation.suites import HOTPOTQA, SUITES, digest_of, open_suite
from inference.training.hops import build
from retrieval.documents import load
from retrieval.index import open_index
from retrieval.table import retriever_config


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_the_sample_names_documents_of_its_corpus() -> None:
    suite = open_suite("sample")
    assert len(suite.questions) == 30 and suite.docs is not None
    names = {document.id for document in load(suite.docs)}
    assert {name for one in suite.questions for name in one.supporting} <= names
    assert {one.hops for one in suite.questions} == {1, 2, 3}


def test_hotpotqa_names_documents_of_its_corpus() -> None:
    try:
        suite = open_suite("hotpotqa")
    except SuiteInputError as error:
        pytest.skip(str(error))
    assert suite.docs is not None
    names = {document.id for document in load(suite.docs)}
    assert suite.questions and all(one.supporting for one in suite.questions)
    assert {name for one in suite.questions for name in one.supporting} <= names


def test_hotpotqa_elsewhere_is_found_by_option_and_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "x", "question": "Who?", "answer": "Ada", "supporting": ["p0"], "type": "bridge"}
    write(tmp_path / "questions.jsonl", row)
    write(tmp_path / "corpus.jsonl", {"id": "p0", "title": "Ada", "text": "Ada it was."})
    monkeypatch.setenv(HOTPOTQA, str(tmp_path / "nowhere"))
    with pytest.raises(SuiteInputError, match=f"nowhere.*{HOTPOTQA}"):
        open_suite("hotpotqa")
    by_option = open_suite(f"hotpotqa:path={tmp_path}")
    monkeypatch.setenv(HOTPOTQA, str(tmp_path))
    assert open_suite("hotpotqa") == by_option
    assert open_suite(by_option.name) == by_option, "the name opens it again"


def test_synthetic_questions_are_the_same_each_time_and_name_their_documents() -> None:
    suite = open_suite("synthetic-hops:questions=3")
    again = open_suite("synthetic-hops:split=test,seed=0,questions=3,poisoned=false")
    assert suite == again and open_suite(suite.name) == suite
    assert suite.docs is not None
    for question in suite.questions:
        assert question.hops == len(question.supporting)
        assert all((suite.docs / name).is_file() for name in question.supporting)
    other = open_suite("synthetic-hops:split=dev,questions=3")
    assert digest_of(other.questions) != digest_of(suite.questions)


def test_a_poisoned_index_shows_no_gold() -> None:
    suite = open_suite("synthetic-hops:poisoned=true,questions=4")
    assert suite.questions == open_suite("synthetic-hops:questions=4").questions
    folder = suite.index()
    assert folder is not None and suite.docs is not None
    index = open_index(folder)
    documents = {one.id: one.text for one in load(suite.docs)}
    assert len(documents) > 100, "there is something to be misled by"
    assert not set(index.numbers) & {name for one in suite.questions for name in one.supporting}
    words = {name: f" {_plain(name)} {_plain(text)} " for name, text in documents.items()}
    for question in build(0, "test", 4).questions:
        entities = {name for fact in question.facts for name in (fact.head, fact.tail)}
        for entity in entities:
            assert not [n for n, text in words.items() if f" {_plain(entity)} " in text], entity
    retriever = retriever_config("hybrid").open(folder)
    for question, hits in zip(
        suite.questions, retriever.search([one.text for one in suite.questions], 10), strict=True
    ):
        assert len(hits) == 10
        for gold in question.golds:
            assert not [h for h in hits if f" {_plain(gold)} " in f" {_plain(h.passage.text)} "]


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def test_a_limit_spreads_over_the_suite() -> None:
    suite = open_suite("synthetic-hops:questions=4")
    assert [one.hops for one in suite.chosen(3)] == [1, 2, 3]
    assert suite.chosen(99) == suite.chosen(None) == suite.questions
    for limit in range(1, len(suite.questions)):
        assert len({one.id for one in suite.chosen(limit)}) == limit


GOOD = {"id": "x", "question": "Who?", "answer": "Ada"}
BAD: dict[str, tuple[list[Any], str]] = {
    "no row": ([], "no question"),
    "no object": ([[1]], "no object"),
    "no answer": ([{"id": "x", "question": "Who?"}], "answer=None"),
    "blank question": ([{**GOOD, "question": " "}], "question=' '"),
    "aliases": ([{**GOOD, "aliases": "Ada"}], "aliases='Ada'"),
    "hops": ([{**GOOD, "hops": 0}], "hops=0"),
    "twice": ([GOOD, GOOD], "stands twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_with_their_line(tmp_path: Path, case: str) -> None:
    rows, named = BAD[case]
    with pytest.raises(SuiteInputError, match=named):
        open_suite(str(write(tmp_path / "q.jsonl", *rows)))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sampel", "did you mean 'sample'"),
        ("sample:path=x", "no option 'path'"),
        ("synthetic-hops:split=tset", "split"),
        ("synthetic-hops:questions=0", "questions"),
        ("nowhere.jsonl", "no such file"),
    ],
)
def test_unknown_suites_and_options_are_refused(text: str, named: str) -> None:
    with pytest.raises(SuiteInputError, match=named):
        open_suite(text)


def test_documents_beside_a_suite_that_has_its_own_are_refused(tmp_path: Path) -> None:
    for name in SUITES:
        with pytest.raises(SuiteInputError, match="documents of its own"):
            open_suite(name, tmp_path)


def test_a_supporting_id_that_is_no_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "fox.md").write_text("# Fox\n\nThe fox.\n", encoding="utf-8")
    good = write(tmp_path / "good.jsonl", {**GOOD, "supporting": ["fox.md", "fox.md#0"]})
    assert open_suite(str(good), tmp_path / "docs").index() is not None
    bad = write(tmp_path / "bad.jsonl", {**GOOD, "supporting": ["fox"]})
    with pytest.raises(SuiteInputError, match="'fox'"):
        open_suite(str(bad), tmp_path / "docs").index()
