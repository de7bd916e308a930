"""The sample corpus and its questions are what data/README.md says they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from graphs.loaders import load as load_graph
from retrieval.documents import Document, load

DATA = Path(__file__).parents[2] / "data"
QUESTIONS: list[dict[str, Any]] = [
    json.loads(line) for line in (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]
KEYS = {"id", "question", "answer", "aliases", "type", "hops", "supporting"}

COMPARED = {
    "comparison-01": (max, r"([\d,]+) metres"),
    "comparison-02": (min, r"(?:since|in) (\d{4})"),
    "comparison-03": (min, r"born in \w+ in (\d{4})|\((\d{4})-"),
    "comparison-04": (max, r"(\d+) metres"),
    "comparison-05": (max, r"(\d+) kilometres"),
    "comparison-06": (max, r"([\d,]+) inhabitants"),
    "comparison-07": (min, r"[Ll]aunched in (\d{4})"),
    "comparison-08": (max, r"(?:seats|holds) ([\d,]+)"),
    "comparison-09": (min, r"died in (?:[A-Z]\w+ )*(?:in )?(\d{4})"),
    "comparison-10": (min, r"(?:opened in|In) (\d{4})"),
}
"""Which of the two figures wins, and where it stands in either document (first match)."""


def of_type(kind: str) -> list[Any]:
    return [pytest.param(q, id=q["id"]) for q in QUESTIONS if q["type"] == kind]


def plain(text: str) -> str:
    """Lower case, one space between words; a file name used as title reads as words."""
    return " ".join(text.replace("-", " ").casefold().split())


def holds(text: str, phrase: str) -> bool:
    return re.search(rf"\b{re.escape(plain(phrase))}\b", plain(text)) is not None


@pytest.fixture(scope="module")
def corpus() -> dict[str, Document]:
    return {document.id: document for document in load(DATA / "corpus")}


def supporting(question: dict[str, Any], corpus: dict[str, Document]) -> list[Document]:
    return [corpus[name] for name in question["supporting"]]


def test_corpus_has_enough_short_documents_with_titles_of_their_own(
    corpus: dict[str, Document],
) -> None:
    assert len(corpus) >= 64
    titles = Counter(plain(document.title) for document in corpus.values())
    assert [title for title, count in titles.items() if count > 1] == []
    words = {name: len(document.text.split()) for name, document in corpus.items()}
    assert {name: n for name, n in words.items() if not 40 <= n <= 250} == {}


def test_readme_states_the_size_of_the_corpus(corpus: dict[str, Document]) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"\n{len(corpus)} documents " in readme


def test_every_format_is_read_and_needed_by_a_question(corpus: dict[str, Document]) -> None:
    formats = {PurePosixPath(document.source).suffix for document in corpus.values()}
    assert formats == {".md", ".txt", ".html", ".pdf", ".jsonl"}
    used = {corpus[name].source for question in QUESTIONS for name in question["supporting"]}
    assert {PurePosixPath(source).suffix for source in used} == formats


def test_page_boilerplate_does_not_reach_the_text(corpus: dict[str, Document]) -> None:
    name = "institutions/meridian-theatre.html"
    page = (DATA / "corpus" / name).read_text(encoding="utf-8")
    for boilerplate in ("Plan your visit", "cookies", "Newsletter", "Imprint"):
        assert boilerplate in page
        assert boilerplate not in corpus[name].text


def test_questions_have_the_stated_form() -> None:
    assert Counter(q["type"] for q in QUESTIONS) == {"one_hop": 10, "two_hop": 10, "comparison": 10}
    assert len({q["id"] for q in QUESTIONS}) == len({q["question"] for q in QUESTIONS}) == 30
    for q in QUESTIONS:
        assert set(q) - {"demo"} == KEYS
        assert q["question"].endswith("?")
        assert 1 <= len(q["answer"].split()) <= 5
        assert q["answer"] not in q["aliases"]
        assert len(set(q["aliases"])) == len(q["aliases"])
        assert q["hops"] == len(set(q["supporting"])) == len(q["supporting"])


def test_exactly_one_two_hop_question_is_the_demo() -> None:
    demo = [q for q in QUESTIONS if "demo" in q]
    assert [(q["type"], q["hops"], q["demo"]) for q in demo] == [("two_hop", 2, True)]
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert f'--question "{demo[0]["question"]}"' in readme


@pytest.mark.parametrize("question", of_type("one_hop"))
def test_one_hop_names_its_document_which_holds_the_answer(
    question: dict[str, Any], corpus: dict[str, Document]
) -> None:
    (document,) = supporting(question, corpus)
    assert holds(question["question"], document.title)
    assert question["answer"] in document.text


@pytest.mark.parametrize("question", of_type("two_hop"))
def test_two_hop_needs_every_document_of_its_chain(
    question: dict[str, Any], corpus: dict[str, Document]
) -> None:
    first, *bridges = supporting(question, corpus)
    assert len(bridges) in {1, 2}
    assert holds(question["question"], first.title)
    for here, there in zip([first, *bridges], bridges, strict=False):
        assert holds(here.text, there.title)
        assert not holds(question["question"], there.title)
    *before, last = [first, *bridges]
    assert question["answer"] in last.text
    assert [d.id for d in before if holds(d.text, question["answer"])] == []


@pytest.mark.parametrize("question", of_type("two_hop"))
def test_two_hop_has_no_shortcut_through_one_document(
    question: dict[str, Any], corpus: dict[str, Document]
) -> None:
    subject = corpus[question["supporting"][0]].title
    answers = [question["answer"], *question["aliases"]]
    shortcuts = [
        document.id
        for document in corpus.values()
        if holds(document.title + "\n" + document.text, subject)
        and any(holds(document.text, answer) for answer in answers)
    ]
    assert shortcuts == []


@pytest.mark.parametrize("question", of_type("comparison"))
def test_comparison_follows_from_one_figure_in_each_document(
    question: dict[str, Any], corpus: dict[str, Document]
) -> None:
    pair = supporting(question, corpus)
    assert len(pair) == 2
    assert all(holds(question["question"], document.title) for document in pair)
    assert not holds(pair[0].text, pair[1].title)
    assert not holds(pair[1].text, pair[0].title)
    better, where = COMPARED[question["id"]]
    figures = {document.title: figure(where, document) for document in pair}
    assert len(set(figures.values())) == 2
    assert question["answer"] == better(figures, key=figures.__getitem__)


def figure(where: str, document: Document) -> int:
    found = re.search(where, document.text)
    assert found is not None, f"{document.id} states no figure like {where}"
    return int(next(group for group in found.groups() if group).replace(",", ""))


def test_the_first_named_of_a_comparison_is_right_half_of_the_time(
    corpus: dict[str, Document],
) -> None:
    comparisons = [q for q in QUESTIONS if q["type"] == "comparison"]
    first = 0
    for q in comparisons:
        named = [document.title for document in supporting(q, corpus)]
        assert q["question"].index(named[0]) < q["question"].index(named[1])
        first += q["answer"] == named[0]
    assert first == 5


def test_every_fact_of_the_graph_is_told_by_a_document(corpus: dict[str, Document]) -> None:
    """One document names both ends; a birthplace stands in the sentence about a birth."""
    facts = load_graph(DATA / "graph.tsv").facts
    assert len({fact.key for fact in facts}) == len(facts) >= 50
    texts = [f"{document.title}. {document.text}" for document in corpus.values()]
    missing = [
        fact.key
        for fact in facts
        if not any(holds(text, fact.head) and holds(text, fact.tail) for text in texts)
    ]
    assert missing == []
    for fact in facts:
        if fact.relation == "born in":
            told = next(t for t in texts if t.startswith(fact.head))
            born = [part for part in re.split(r"\.\s", told) if re.search(r"\b[Bb]orn\b", part)]
            assert any(holds(part, fact.tail) for part in born), fact.key
