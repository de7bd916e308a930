"""Auto-RAG's parser and dialogue, against the steps of Algorithm 2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import auto_rag
from agents.auto_rag import Action, parse_turn
from agents.prompts import fill, load_prompts


@pytest.mark.parametrize(
    ("turn", "action", "text"),
    [
        ("I must search.\nInitial Query: founder of X", Action.RETRIEVE, "founder of X"),
        ("Doc 1 helps.\nRefined Query: [Dense] birth of Y", Action.RETRIEVE, "birth of Y"),
        ("QUERY: a\nthen\nquery: b", Action.RETRIEVE, "b"),
        ("Enough.\nFinal Answer: Denmark", Action.ANSWER, "Denmark"),
        ("the final answer is near\nFINAL ANSWER: 1871", Action.ANSWER, "1871"),
        # A turn with both retrieves again: the query check comes first.
        ("Final Answer: A\nRefined Query: B", Action.RETRIEVE, "B"),
        ("Refined Query: B\nFinal Answer: A", Action.RETRIEVE, "B\nFinal Answer: A"),
        ("I do not know.", Action.MALFORMED, ""),
        ("Refined Query:   ", Action.MALFORMED, ""),
        ("Final Answer:", Action.MALFORMED, ""),
        ("Refined Query: [Dense]", Action.MALFORMED, ""),
        ("", Action.MALFORMED, ""),
    ],
)
def test_the_action_of_a_turn(turn: str, action: Action, text: str) -> None:
    parsed = parse_turn(turn)
    assert (parsed.action, parsed.text) == (action, text)


def test_reasoning_is_what_stands_before_the_marker_line() -> None:
    turn = parse_turn("Document 1 names Tove.\nHer country is missing.\nRefined Query: Tove")
    assert turn.reasoning == "Document 1 names Tove.\nHer country is missing."


@given(st.text(max_size=200))
def test_any_text_is_parsed_and_only_markers_act(text: str) -> None:
    turn = parse_turn(text)
    if "query:" not in text.lower() and "final answer" not in text.lower():
        assert turn.action is Action.MALFORMED
    if turn.action is Action.MALFORMED:
        assert turn.text == ""
    else:
        assert turn.text and turn.text == turn.text.strip()


@given(
    reasoning=st.text(max_size=80), query=st.from_regex(r"[A-Za-z ]{0,20}[A-Za-z]", fullmatch=True)
)
def test_the_last_query_wins_whatever_stands_before(reasoning: str, query: str) -> None:
    turn = parse_turn(f"{reasoning}\nRefined Query: {query}")
    if "query:" not in query.lower():
        assert (turn.action, turn.text) == (Action.RETRIEVE, query.strip())


def test_document_turn_is_one_numbered_user_turn_with_a_passage_a_line() -> None:
    passages = [{"title": "A", "text": "first."}, {"title": "B", "text": "second."}]
    turn = auto_rag.document_turn(3, passages)
    assert turn.role == "user"
    assert turn.content == "Retrieved Document 3: A: first.\nB: second."


def test_a_heading_that_says_the_title_is_not_repeated() -> None:
    passage = {"title": "The Mill", "text": "# The Mill\n\nIt turns."}
    assert auto_rag.titled(passage) == "The Mill: It turns."
    assert auto_rag.titled({"title": "A", "text": "# B\n\nA b."}) == "A: B\n\nA b."


def test_placeholders_in_untrusted_text_are_not_filled() -> None:
    turn = auto_rag.document_turn(1, [{"title": "T", "text": "costs $number and $passages"}])
    assert turn.content.endswith("T: costs $number and $passages")
    assert fill("$a", a="$b") == "$b"


def test_opening_shows_demonstrations_that_parse_as_the_format_asks() -> None:
    bare, shown = auto_rag.opening("Why?", 0), auto_rag.opening("Why?", 2)
    assert [message.role for message in bare] == ["system", "user"]
    assert bare[-1] == shown[-1]
    actions = [parse_turn(m.content).action for m in shown if m.role == "assistant"]
    assert actions == [Action.RETRIEVE, Action.RETRIEVE, Action.ANSWER] * 2


def test_elicitation_has_four_demonstrations_and_ends_where_the_model_goes_on() -> None:
    prompt = auto_rag.elicitation("Who?", "some query")
    assert prompt.count("Passage:") == 5
    assert prompt.endswith("Question: Who?\nQuery: some query\nPassage:")


def test_prompt_files_are_complete() -> None:
    assert set(load_prompts("auto_rag")) == {
        "system",
        "question",
        "document",
        "demonstrations",
        "elicit",
        "closing",
    }


@pytest.mark.parametrize(
    ("query", "asked", "repeat"),
    [
        ("Birth of  Tove?", ["birth of tove"], True),
        ("birth of tove brandal", ["birth of tove"], False),
        ("x", [], False),
    ],
)
def test_repeats_are_found_but_for_case_and_spacing(
    query: str, asked: list[str], repeat: bool
) -> None:
    assert auto_rag.is_repeat(query, asked) is repeat


@pytest.mark.parametrize(
    ("passage", "answer", "holds"),
    [
        ("She was born in Denmark.", "denmark", True),
        ("She was born in Denmarkshire.", "Denmark", False),
        ("anything", "", False),
        ("on 3 May 1871, it opened", "3 May 1871", True),
    ],
)
def test_support_is_by_whole_words(passage: str, answer: str, holds: bool) -> None:
    assert auto_rag.supports(passage, answer) is holds
