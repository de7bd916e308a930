"""Stories that traces are told of: what is asked, found and concluded stands where it must."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

import bm25s
import pytest

from agents.auto_rag import supports
from inference.training.hops import build
from inference.training.stories import NEGATIVES, of_base, of_prose, written

STORIES = written(more=True)
IDS = [story["question"][:40] for story in STORIES]
each = pytest.mark.parametrize("story", STORIES, ids=IDS)


def bare(title: str) -> str:
    """A title without what tells it from others of its name."""
    return re.sub(r" \(.*\)$", "", title).casefold()


@each
def test_steps_state_what_they_find(story: dict[str, Any]) -> None:
    for step in story["step"]:
        assert supports(step["text"], step["tail"])
        assert len({query.casefold() for query in step["queries"]}) == 3
        assert not step["need"].endswith(("?", ".")) and not step["found"][0].endswith(".")


@each
def test_steps_lead_to_the_answer(story: dict[str, Any]) -> None:
    first, last = story["step"][0], story["step"][-1]
    if story["kind"] == "comparison":
        assert len(story["step"]) == 2 and story["so"]
        assert story["answer"] in {"yes", "no"} or supports(story["question"], story["answer"])
        return
    assert story["answer"] == last["tail"] and "so" not in story
    assert len(story["step"]) == {"single": 1, "bridge": 2}[story["kind"]]
    if story["kind"] == "bridge":
        bridge, title = first["tail"].casefold(), bare(last["title"])
        assert bridge not in story["question"].casefold(), "a search with the question would do"
        assert bridge in title or title in bridge


@each
def test_what_looks_alike_does_not_answer(story: dict[str, Any]) -> None:
    if story["kind"] == "comparison":
        return  # its sides are what is named
    for passage in story.get("near", ()):
        assert len(story["answer"]) < 4 or not supports(passage["text"], story["answer"])


def test_no_passage_stands_twice() -> None:
    rows = [row for story in STORIES for row in (*story["step"], *story.get("near", ()))]
    assert [text for text, n in Counter(row["text"] for row in rows).items() if n > 1] == []
    assert len({story["question"] for story in STORIES}) == len(STORIES) >= 200


def test_comparisons_end_in_all_ways() -> None:
    ends = Counter(
        story["answer"] if story["answer"] in {"yes", "no"} else "named"
        for story in STORIES
        if story["kind"] == "comparison"
    )
    assert ends["yes"] >= 10 and ends["no"] >= 10 and ends["named"] >= 20


def test_a_step_knows_its_storys_passages_from_the_others() -> None:
    for row, story in zip(STORIES, of_prose(STORIES, ()), strict=True):
        for step in story.steps:
            assert [one.title for one in step.alike] == [p["title"] for p in row.get("near", ())]
            own = {one.gold for one in story.steps}
            assert not own & {*step.alike, *step.near}


def test_hard_negatives_are_what_searches_find_but_what_helps() -> None:
    """Against BM25 of another library: of what it finds first most is among them."""
    base = build(0, "train", 120)
    names = list(base.documents)
    text = [f"{name} {base.documents[name]}" for name in names]
    engine = bm25s.BM25()
    engine.index(bm25s.tokenize(text, show_progress=False), show_progress=False)
    draw, found, wanted = random.Random(0), 0, 0
    for question in base.questions[:40]:
        gold = {fact.document for fact in question.facts}
        story = of_base(base, question, draw, hard=True)
        for step, fact in zip(story.steps, question.facts, strict=True):
            negatives = {one.text for one in step.alike}
            assert len(negatives) >= NEGATIVES and set(step.alike) <= set(step.far)
            assert not any(fact.head in f"{one.title} {one.text}" for one in step.alike)
            assert not negatives & {base.documents[name] for name in gold}
        query = bm25s.tokenize([question.text], show_progress=False)
        places = engine.retrieve(query, k=20, show_progress=False).documents[0]
        best = [n for n in (names[p] for p in places) if n not in gold]
        best = [n for n in best if question.facts[0].head not in f"{n} {base.documents[n]}"][:3]
        negatives = {one.text for one in story.steps[0].alike}
        wanted += len(best)
        found += sum(base.documents[name] in negatives for name in best)
        assert all(step.alike == () for step in of_base(base, question, draw).steps)
    assert found / wanted > 0.6


def test_hard_negatives_in_prose_too() -> None:
    stories = of_prose(STORIES, (), hard=True)
    passages = list({step.gold for story in stories for step in story.steps})
    engine = bm25s.BM25()
    text = [f"{one.title} {one.text}" for one in passages]
    engine.index(bm25s.tokenize(text, show_progress=False), show_progress=False)
    found = wanted = 0
    for row, story in list(zip(STORIES, stories, strict=True))[::7]:
        own = {one.gold for one in story.steps}
        for step in story.steps:
            negatives = step.alike[len(row.get("near", ())) :]
            assert len(negatives) == NEGATIVES and not own & set(negatives)
            assert not any(step.tail in one.text for one in negatives)
        first = story.steps[0]
        asked = bm25s.tokenize([f"{story.question} {first.queries[0]}"], show_progress=False)
        places = engine.retrieve(asked, k=20, show_progress=False).documents[0]
        best = [one for one in (passages[p] for p in places) if one not in own]
        best = [one for one in best if first.tail not in one.text][:3]
        wanted += len(best)
        found += len({*best} & {*first.alike})
    assert found / wanted > 0.6
