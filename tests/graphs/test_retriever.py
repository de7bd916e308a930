"""What every row of GRAPH_RETRIEVERS must do, over a real graph."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.store import GraphStore
from graphs.table import GRAPH_RETRIEVERS, GraphConfig
from retrieval.errors import RetrievalInputError, UnknownName
from retrieval.retriever import Hit, Retriever

QUERIES = [
    "What did Marie Curie discover?",
    "capital of the country that polonium is named after",
    "nuclear fission",
    "Which town is the capital of France?",
]


@pytest.fixture(params=GRAPH_RETRIEVERS, scope="module")
def retriever(request: pytest.FixtureRequest, graph_path: Path) -> Retriever:
    return GRAPH_RETRIEVERS[request.param]().open(graph_path)


def everything(retriever: Retriever, query: str, **options: Any) -> list[Hit]:
    (hits,) = retriever.search([query], 10_000, **options)
    return hits


def ids(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


def test_is_a_retriever_with_a_default_k(retriever: Retriever) -> None:
    assert isinstance(retriever, Retriever)
    assert all(config().k == 5 for config in GRAPH_RETRIEVERS.values())


def test_facts_of_linked_entities_that_share_words_come_first(retriever: Retriever) -> None:
    tops = [hits[0].passage.text for hits in retriever.search(QUERIES, 2)]
    assert tops[1] == "Polonium named after Poland"
    assert tops[2] == "Otto Hahn discovered Nuclear fission"
    assert tops[3] == "Paris capital of France"
    first = [hit.passage.text for hit in everything(retriever, QUERIES[0])][:2]
    assert first == ["Marie Curie discovered Polonium", "Marie Curie discovered Radium"]


def test_facts_between_two_entities_count_as_theirs(graph_path: Path) -> None:
    query = "How are France and Poland connected?"
    hits = GraphConfig(hops=3, words=0).open(graph_path).search([query], 20)[0]
    between = {hit.passage.text for hit in hits if hit.score == 1.0}
    store = GraphStore.open(graph_path)
    on_paths = {
        store.texts[leg.row]
        for path in store.paths("France", "Poland", 8, shortest=True).paths
        for leg in path
    }
    assert on_paths <= between
    assert "Pierre Curie born in Paris" in between


def test_scores_are_what_they_are_said_to_be(graph_path: Path) -> None:
    store = GraphStore.open(graph_path)
    hits = GraphConfig(words=0, hops=2).open(graph_path).search(["Poland"], 100)[0]
    hop = {store.facts[n.row].id: n.hop for n in store.neighbours("Poland", 2).near}
    assert {hit.passage.document_id: hit.score for hit in hits} == {
        identifier: 0.5 ** (at - 1) for identifier, at in hop.items()
    }


def test_unrelated_facts_are_no_hits(retriever: Retriever) -> None:
    assert everything(retriever, "zzzz qqqq") == []
    around = {hit.passage.text for hit in everything(retriever, "nuclear fission")}
    assert around == {"Otto Hahn discovered Nuclear fission"}


def test_k_bounds_scores_descend_and_it_is_the_same_again(retriever: Retriever) -> None:
    for query in QUERIES:
        whole = everything(retriever, query)
        scores = [hit.score for hit in whole]
        assert scores == sorted(scores, reverse=True) and min(scores) > 0
        for k in (1, 2, len(whole)):
            (hits,) = retriever.search([query], k)
            assert hits == whole[:k]
    assert retriever.search(QUERIES, 4) == [retriever.search([q], 4)[0] for q in QUERIES]


def test_provenance_is_exact(retriever: Retriever, store: GraphStore) -> None:
    text = (store.manifest.folder(store.path) / "facts.txt").read_text(encoding="utf-8")
    for query in QUERIES:
        for hit in everything(retriever, query):
            passage = hit.passage
            assert passage.text == text[passage.start : passage.end]
            assert re.fullmatch(r"[0-9a-f]{16}#0", passage.id)
            assert passage.id == f"{passage.document_id}#0"
            assert passage.metadata["head"] in store.graph
            assert passage.source == f"facts.tsv:{passage.metadata['line']}"
            assert set(hit.ranks) <= {"graph", "words"} and hit.ranks


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_exclude_and_where_act_before_ranking(data: st.DataObject, graph_path: Path) -> None:
    retriever = GraphConfig(words=data.draw(st.sampled_from([0.0, 0.5]))).open(graph_path)
    query = data.draw(st.sampled_from(QUERIES))
    whole = everything(retriever, query)
    exclude = data.draw(st.sets(st.sampled_from([*ids(whole), "0000000000000000#0", "x"])))
    relation = data.draw(st.none() | st.sampled_from(["discovered", "born_in", "nothing"]))
    where = None if relation is None else {"relation": [relation, "capital_of"]}
    k = data.draw(st.integers(1, len(whole)))
    allowed = [
        hit.passage.id
        for hit in whole
        if hit.passage.id not in exclude
        and (where is None or hit.passage.metadata["relation"] in where["relation"])
    ]
    (hits,) = retriever.search([query], k, exclude=exclude, where=where)
    assert ids(hits) == allowed[:k]


def test_where_compares_as_json(retriever: Retriever) -> None:
    def found(where: dict[str, Any]) -> set[int | None]:
        return {
            hit.passage.metadata["line"] for hit in everything(retriever, QUERIES[0], where=where)
        }

    assert found({"line": 1}) == {1}
    assert found({"line": True}) == found({"line": []}) == found({"line": "1"}) == set()
    assert found({"line": [1, 2], "relation": "discovered"}) == {1, 2}
    with pytest.raises(UnknownName, match="metadata key 'haed'; did you mean 'head'"):
        found({"haed": "x"})


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(retriever: Retriever, query: str) -> None:
    with pytest.raises(RetrievalInputError, match="is empty"):
        retriever.search(["fine", query], 3)


def test_bad_calls(retriever: Retriever) -> None:
    with pytest.raises(RetrievalInputError, match="k=0 must be at least 1"):
        retriever.search(["fine"], 0)
    with pytest.raises(RetrievalInputError, match="lists of strings"):
        retriever.search("polonium", 3)
    assert retriever.search([], 3) == []


def test_threads_get_the_answers_of_one_thread(graph_path: Path) -> None:
    retriever = GraphConfig().open(graph_path)
    expected = [GraphConfig().open(graph_path).search([query], 5) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: retriever.search([query], 5), QUERIES * 5))
    assert found == expected * 5
