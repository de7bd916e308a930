"""A graph of 5,802 lines, where the evaluation data lies beside the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphs.build import build_graph
from graphs.store import GraphStore
from graphs.table import GraphConfig
from tests.house.source import ROOT

MEDICAL = ROOT.parent / "shared" / "data" / "medical"

pytestmark = pytest.mark.skipif(
    not MEDICAL.is_dir(), reason="the evaluation data ../shared/data/medical is absent"
)


def test_a_real_graph_is_linked_and_searched(tmp_path: Path) -> None:
    file = MEDICAL / "triples.tsv"
    lines = [tuple(line.split("\t")) for line in file.read_text(encoding="utf-8").splitlines()]
    report = build_graph(file, tmp_path / "g")
    assert report.triples == len(set(lines))
    assert report.duplicates == len(lines) - len(set(lines))
    store = GraphStore.open(tmp_path / "g")
    for fact in store.facts:
        assert fact.line is not None and lines[fact.line - 1] == fact.key
    rows = (MEDICAL / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(row)["question"] for row in rows]
    linked = [store.link(question) for question in questions]
    assert sum(bool(links) for links in linked) >= 0.95 * len(questions)
    named = sum(any(link.how == "name" for link in links) for links in linked)
    assert named >= 0.5 * len(questions)
    retriever = GraphConfig(k=10).open(tmp_path / "g")
    for links, hits in zip(linked[:20], retriever.search(questions[:20], 10), strict=True):
        if any(link.how == "name" for link in links):
            ends = {end for hit in hits for end in hit.passage.metadata.values()}
            assert ends & {link.entity for link in links}, "hits are about what is named"
