"""What every row of RETRIEVERS must do, over a real index."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import RetrievalInputError, UnknownName
from retrieval.index import open_index
from retrieval.retriever import Hit, Retriever
from retrieval.table import RETRIEVERS, retriever_config
from tests.retrieval.conftest import FACTS, documents

QUERIES = ["who discovered polonium", "universal machine", "the ship in the harbour", "Peas"]
DOCUMENTS = {document.id: document for document in documents()}


@pytest.fixture(params=RETRIEVERS)
def retriever(request: pytest.FixtureRequest, index_path: Path) -> Retriever:
    """One retriever of the table, opened over the corpus."""
    return retriever_config(request.param).open(index_path)


def everything(retriever: Retriever, query: str = QUERIES[0], **options: Any) -> list[Hit]:
    """All hits of one query."""
    (hits,) = retriever.search([query], 10_000, **options)
    return hits


def ids(hits: list[Hit]) -> list[str]:
    """Passage ids in order."""
    return [hit.passage.id for hit in hits]


def test_is_a_retriever_with_a_default_k(retriever: Retriever) -> None:
    assert isinstance(retriever, Retriever)
    assert all(config().k == 5 for config in RETRIEVERS.values())


def test_finds_what_shares_words_and_sense(retriever: Retriever) -> None:
    tops = [hits[0].passage.document_id for hits in retriever.search(QUERIES, 3)]
    assert tops == ["curie", "turing", "saga", "mendel"]


def test_k_bounds_the_hits_and_a_large_k_returns_all(
    retriever: Retriever, index_path: Path
) -> None:
    whole = everything(retriever)
    assert len(whole) == len(set(ids(whole))) == len(open_index(index_path))
    for k in (1, 2, 5, len(whole)):
        (hits,) = retriever.search(QUERIES[:1], k)
        assert ids(hits) == ids(whole)[:k]


def test_scores_descend_and_ties_go_to_the_earlier_passage(retriever: Retriever) -> None:
    for query in QUERIES:
        hits = everything(retriever, query)
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
    found = ids(everything(retriever, "universal machine"))
    assert found.index("turing#0") < found.index("copy#0")


def test_the_same_answer_again_alone_or_in_a_batch(retriever: Retriever, index_path: Path) -> None:
    batch = retriever.search(QUERIES * 8, 6)
    assert batch == retriever.search(QUERIES * 8, 6)
    for query, hits in zip(QUERIES, batch, strict=False):
        assert retriever.search([query], 6) == [hits]


def test_provenance_is_exact(retriever: Retriever) -> None:
    for hit in everything(retriever):
        passage, document = hit.passage, DOCUMENTS[hit.passage.document_id]
        assert passage.text == document.text[passage.start : passage.end]
        assert (passage.title, passage.source) == (document.title, document.source)
        assert dict(passage.metadata) == dict(document.metadata)
        assert re.fullmatch(re.escape(document.id) + r"#\d+", passage.id)
    saga = [hit.passage for hit in everything(retriever) if hit.passage.document_id == "saga"]
    assert sorted(p.id for p in saga) == [f"saga#{n}" for n in range(len(saga))]
    assert len(saga) > 1


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_exclude_and_where_act_before_ranking(data: st.DataObject, index_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(RETRIEVERS)))
    retriever = retriever_config(name).open(index_path)
    query = data.draw(st.sampled_from(QUERIES))
    whole = everything(retriever, query)
    exclude = data.draw(st.sets(st.sampled_from([*ids(whole), "turing#9", "nobody#0", "x"])))
    fields = data.draw(st.none() | st.lists(st.sampled_from(["biology", "physics", "none"])))
    where = None if fields is None else {"field": fields}
    k = data.draw(st.integers(1, len(whole)))
    allowed = [
        hit.passage.id
        for hit in whole
        if hit.passage.id not in exclude
        and (fields is None or hit.passage.metadata.get("field") in fields)
    ]
    (hits,) = retriever.search([query], k, exclude=exclude, where=where)
    assert len(hits) == min(k, len(allowed))
    assert set(ids(hits)) <= set(allowed)
    if name != "hybrid":  # ranks of a fusion are counted among the allowed passages
        assert ids(hits) == allowed[:k]


def test_where_compares_as_json(retriever: Retriever) -> None:
    def found(where: dict[str, Any]) -> set[str]:
        return {hit.passage.document_id for hit in everything(retriever, where=where)}

    biology = {key for key, (_, _, field) in FACTS.items() if field == "biology"}
    assert found({"field": "biology"}) == biology
    assert found({"field": ["biology", "absent"]}) == biology
    assert found({"field": 1}) == found({"field": []}) == set()
    with pytest.raises(UnknownName, match="metadata key 'feild'; did you mean 'field'"):
        found({"feild": "biology"})


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(retriever: Retriever, query: str) -> None:
    with pytest.raises(RetrievalInputError, match="is empty"):
        retriever.search(["fine", query], 3)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(retriever: Retriever, k: int) -> None:
    with pytest.raises(RetrievalInputError, match=f"k={k} must be at least 1"):
        retriever.search(["fine"], k)


def test_one_string_is_not_a_list_of_queries(retriever: Retriever) -> None:
    with pytest.raises(RetrievalInputError, match="lists of strings"):
        retriever.search("polonium", 3)


def test_no_queries_no_lists(retriever: Retriever) -> None:
    assert retriever.search([], 3) == []


def test_queries_without_known_words(retriever: Retriever, index_path: Path) -> None:
    for query in ("the of and", "?!", "zzzzqqq 漢字", "\u200b\x07"):
        assert len(everything(retriever, query)) == len(open_index(index_path))


def test_threads_get_the_answers_of_one_thread(retriever: Retriever) -> None:
    expected = [retriever.search([query], 5) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: retriever.search([query], 5), QUERIES * 10))
    assert found == expected * 10


def test_options_are_checked() -> None:
    with pytest.raises(UnknownName, match="unknown retriever 'hybird'; did you mean 'hybrid'"):
        retriever_config("hybird")
    with pytest.raises(RetrievalInputError, match=r"'dept'.*its options are k, rrf, depth"):
        retriever_config("hybrid", {"dept": 3})
    with pytest.raises(RetrievalInputError, match="option 'k'"):
        retriever_config("dense", {"k": 0})
