"""The Auto-RAG workflow turn by turn over a real index, against Algorithm 2."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from retrieval.index import build_index
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.runtime import RunResult, RunStatus

QUESTION = "Where was the founder of the Orrin Mill born?"
DOCUMENTS = {
    "mill": "The Orrin Mill is a water mill. It was founded by Petra Lund in 1803.",
    "lund": "Petra Lund was a miller and diarist. She was born in Vessmark.",
    "vessmark": "Vessmark is a village of four hundred people on a lake.",
    "barn": "The Orrin barn stands beside the mill and holds a museum of ploughs.",
    "lake": "Lake Dorn is fed by three streams and freezes every winter.",
    "plough": "A plough is a tool that turns the soil before sowing.",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real hybrid index over six one-sentence documents."""
    docs, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("built") / "index"
    for name, text in DOCUMENTS.items():
        (docs / f"{name}.md").write_text(f"# {name.title()}\n\n{text}\n", encoding="utf-8")
    build_index(docs, out)
    return out


@pytest.fixture
def ask(run: Run, index: Path) -> Any:
    def _ask(*turns: str, **inputs: Any) -> tuple[RunResult, ReplayEngine]:
        engine = ReplayEngine(turns)
        given = {"question": QUESTION, "passages_per_round": 1, "demonstrations": 0}
        given |= {"passages_with_question": 0, **inputs}
        return run("auto_rag", given, engine=engine, index=index), engine

    return _ask


FIRST = "I need the founder.\nInitial Query: founder of the Orrin Mill"
SECOND = "Document 1 names Petra Lund.\nRefined Query: Petra Lund born"
ANSWER = "Document 2 says Vessmark.\nFinal Answer: Vessmark"


def _documents(engine: ReplayEngine) -> list[str]:
    """The document turns of the longest dialogue that the model was given."""
    dialogue = max((r.messages or [] for r in engine.requests), key=len)
    return [m.content for m in dialogue if m.content.startswith("Retrieved Document")]


def test_two_hops_end_with_an_answer_and_its_sources(ask: Any) -> None:
    result, engine = ask(FIRST, SECOND, ANSWER)
    out = result.outputs
    assert result.status is RunStatus.COMPLETED, result.error
    assert (out["answer"], out["ending"], out["grounded"]) == ("Vessmark", "retrieval", True)
    assert (out["rounds"], out["malformed_turns"], out["parametric_rounds"]) == (3, 0, 0)
    assert [c["document_id"] for c in out["citations"]] == ["mill.md", "lund.md"]
    assert [c["contains_answer"] for c in out["citations"]] == [False, True]
    assert [c["round"] for c in out["citations"]] == [1, 2]
    assert out["queries"] == ["founder of the Orrin Mill", "Petra Lund born"]
    assert len(engine.requests) == 3
    documents = _documents(engine)
    assert (
        documents[0].startswith("Retrieved Document 1: ") and "Petra Lund in 1803" in documents[0]
    )
    assert documents[1].startswith("Retrieved Document 2: ")


def test_the_dialogue_only_grows(ask: Any) -> None:
    _, engine = ask(FIRST, SECOND, ANSWER)
    dialogues = [list(request.messages or []) for request in engine.requests]
    for earlier, later in itertools.pairwise(dialogues):
        assert later[: len(earlier)] == earlier


def test_decoding_is_greedy_with_the_papers_limits(ask: Any) -> None:
    _, engine = ask("no action at all", max_rounds=1, max_parametric_rounds=1)
    limits = [request.sampling.max_tokens for request in engine.requests]
    assert limits == [200, 150, 100]
    assert all(request.sampling.temperature == 0 for request in engine.requests)


def test_no_passage_is_shown_twice(ask: Any) -> None:
    result, _ = ask("Hm.", max_rounds=5, passages_per_round=1, max_parametric_rounds=0)
    ids = [c["id"] for c in result.outputs["citations"]]
    assert len(ids) == len(set(ids)) == 5


def test_a_malformed_turn_repeats_the_query_without_counting_a_document(ask: Any) -> None:
    result, engine = ask("What a nice mill.", SECOND, "Hm.", ANSWER)
    assert result.outputs["malformed_turns"] == 2
    searched = [s["notes"]["query"] for s in result.steps if s["node"] == "retrieve"]
    assert searched == [QUESTION, "Petra Lund born", "Petra Lund born"]
    numbers = [d.split(":")[0] for d in _documents(engine)]
    assert numbers == ["Retrieved Document 0", "Retrieved Document 1", "Retrieved Document 1"]
    turns = [s["notes"] for s in result.steps if s["node"] == "turn"]
    assert [t["action"] for t in turns] == ["malformed", "retrieve", "malformed", "answer"]


@pytest.mark.parametrize(
    ("passages", "beside", "found"),
    [(3, 1, [3, 2, 1]), (3, 2, [3, 1, 2]), (3, 0, [3, 3]), (3, 3, [3, 3]), (1, 1, [1, 1])],
)
def test_the_last_passages_of_a_round_are_searched_for_with_the_question(
    ask: Any, passages: int, beside: int, found: list[int]
) -> None:
    opened = FIRST.replace("founder of the Orrin Mill", QUESTION)
    result, engine = ask(
        opened, SECOND, ANSWER, passages_per_round=passages, passages_with_question=beside
    )
    searches = [s["notes"] for s in result.steps if s["node"].startswith("retrieve")]
    own, both = "Petra Lund born", f"{QUESTION} Petra Lund born"
    later = [both] if beside == passages else [own, both]
    assert [s["query"] for s in searches] == [QUESTION, *later][: len(found)]
    assert [len(s["documents"]) for s in searches] == found
    shown = [c["id"] for c in result.outputs["citations"]]
    assert len(shown) == len(set(shown)) == sum(found)
    assert [c["round"] for c in result.outputs["citations"]] == [1] * passages + [2] * passages
    assert len(_documents(engine)) == 2
    assert result.outputs["queries"] == [QUESTION, "Petra Lund born"]


TWO_SEARCHES = """
name: two_searches
inputs: {k: {type: integer}}
resources: {retriever: {use: hybrid}}
nodes:
  first: {use: retrieve, with: {query: mill, k: 2}}
  second: {use: retrieve, with: {query: plough, k: "${inputs.k}", after: "${state.hits}"}}
edges:
  - {from: start, to: first}
  - {from: first, to: second}
  - {from: second, to: end}
outputs: {ids: "${pluck(state.hits, 'document_id')}"}
"""


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_a_search_goes_on_behind_what_another_found(run: Run, index: Path, k: int) -> None:
    result = run(TWO_SEARCHES, {"k": k}, index=index)
    found = result.outputs["ids"]
    assert found[:2] == ["mill.md", "barn.md"][: min(k, 2)]
    assert len(found) == len(set(found)) == min(k, len(DOCUMENTS))
    assert found[2:3] == ["plough.md"][: max(0, k - 2)]
    assert result.usage["retrievals"] == 1 + (k > 2)


def test_after_the_last_round_the_model_recalls_and_may_answer(ask: Any) -> None:
    recalled = "Petra Lund was born in Vessmark.\nQuestion: next"
    result, engine = ask(FIRST, SECOND, "Still missing.\nRefined Query: Lund birthplace",
                         recalled, ANSWER, max_rounds=2)  # fmt: skip
    out = result.outputs
    assert (out["answer"], out["ending"]) == ("Vessmark", "parametric")
    assert (out["rounds"], out["parametric_rounds"]) == (2, 1)
    recall = engine.requests[3]
    assert recall.prompt is not None and recall.prompt.endswith("Query: Lund birthplace\nPassage:")
    assert (recall.sampling.max_tokens, recall.sampling.stop) == (200, ("\n",))
    assert _documents(engine)[-1] == "Retrieved Document 3: Petra Lund was born in Vessmark."


def test_a_repeated_query_forces_the_parametric_phase(ask: Any) -> None:
    result, _ = ask(FIRST, FIRST.replace("Initial", "Refined"), "A passage.", ANSWER)
    assert [s["node"] for s in result.steps] == [
        "open", "turn", "retrieve", "read", "turn", "recall", "parametric_turn", "conclude",
    ]  # fmt: skip
    assert result.outputs["ending"] == "parametric"
    repeated = [s for s in result.steps if s["notes"].get("repeated_query")]
    assert len(repeated) == 1


def test_without_the_guard_a_repeated_query_retrieves_on(ask: Any) -> None:
    result, _ = ask(FIRST, FIRST, ANSWER, repeat_guard=False)
    assert result.outputs["ending"] == "retrieval"
    assert len(result.outputs["citations"]) == 2


def test_a_run_without_any_answer_closes_with_the_bare_question(ask: Any) -> None:
    result, engine = ask(*["Hm."] * 3, "Perhaps Oslo.", max_rounds=2)
    assert (result.outputs["answer"], result.outputs["ending"]) == ("Perhaps Oslo.", "closing")
    assert result.outputs["grounded"] is False
    assert [m.content for m in engine.requests[-1].messages or []] == [QUESTION]
    assert len(result.outputs["citations"]) == 2


@pytest.mark.parametrize("turn", ["Hm.", "More.\nRefined Query: a", "Refined Query:"])
@pytest.mark.parametrize(("rounds", "recalls"), [(1, 0), (2, 3), (5, 5)])
def test_generations_stay_within_the_bound_of_the_method(
    ask: Any, turn: str, rounds: int, recalls: int
) -> None:
    result, engine = ask(turn, max_rounds=rounds, max_parametric_rounds=recalls, repeat_guard=False)
    assert result.status is RunStatus.COMPLETED
    turns = [r for r in engine.requests if r.messages is not None]
    assert len(turns) <= rounds + 1 + recalls + 1
    assert len(engine.requests) - len(turns) == result.outputs["parametric_rounds"] <= recalls


def test_when_every_passage_was_seen_the_parametric_phase_begins(ask: Any) -> None:
    queries = [f"More.\nRefined Query: thing {n}" for n in range(9)]
    result, _ = ask(*queries, max_rounds=9, passages_per_round=4)
    nodes = [s["node"] for s in result.steps]
    assert nodes.count("read") == 2 and "recall" in nodes
    assert len(result.outputs["citations"]) == len(DOCUMENTS)


def test_citations_point_into_the_source(ask: Any, index: Path) -> None:
    result, _ = ask(FIRST, SECOND, ANSWER)
    for citation in result.outputs["citations"]:
        text = Path(citation["source"]).read_text(encoding="utf-8")
        assert text[citation["start"] : citation["end"]] == citation["text"]


def test_a_blank_question_is_refused(ask: Any) -> None:
    from workflows.errors import WorkflowInputError

    with pytest.raises(WorkflowInputError, match="question"):
        ask(FIRST, question="  ")
