"""Auto-RAG dialogues and read questions, told from knowledge bases and from prose.

Source: Auto-RAG (arXiv 2411.19443), Algorithm 1 and section 3.2: planning in the first turn,
extraction and what is still missing in the next ones, inference of the answer in the last.
Deviations: the paper lets language models write reasoning and queries and keeps a trace whose
answer is right; here templates write both, so that every trace is right by construction. What is
extracted begins with the titles of the passages: a small model sees from a list it has written
whether what it needs is among them. The first query is the question: its words find the first
passage as well as any, and in prose better than what a small model makes of them. Half of the
rounds help, where the sheet has three quarters.
"""

from __future__ import annotations

import random
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, Literal

from inference.requests import Message
from inference.training.hops import Base, Fact, Question, once, words
from inference.training.seeds import Passage

TRACES = Path(__file__).with_name("traces.toml")

MISSES = (0, 0, 0, 0, 0, 1, 1, 2)
"""Rounds without a use before a hop's document, drawn per hop: the model must ask again."""
PARAMETRIC = 0.25
"""Share of the traces whose last fact comes from memory, behind rounds without a use."""
LOST = (2, 3, 4)
"""How many such rounds, drawn per trace: a retriever that finds nothing must be recognised."""
PASSAGES = (1, 2, 2, 3, 3)
"""Passages of a round, drawn once per trace."""
PAGE = 0.25
"""Share of the traces whose passages are pages that state several facts of an entity."""

Ending = Literal["retrieval", "parametric"]


@dataclass(frozen=True, slots=True)
class Step:
    """One hop: what is sought, how to ask for it, what is found and where."""

    need: str
    vague: str
    """`need` before the hop's own subject is known."""
    queries: tuple[str, ...]
    found: tuple[str, ...]
    tail: str
    gold: Passage
    near: tuple[Passage, ...]
    """Passages that look alike and do not help."""


@dataclass(frozen=True, slots=True)
class Story:
    """A question and the steps to its answer, the tail of the last."""

    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        """What the question asks for."""
        return self.steps[-1].tail


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages from the system's to the last assistant turn; `misses` rounds did not help."""

    question: str
    messages: tuple[Message, ...]
    hops: int
    misses: int
    ending: Ending


def of_base(base: Base, one: Question, draw: random.Random) -> Story:
    """A story over the documents of a knowledge base."""
    relations, kinds = words()["relations"], words()["kinds"]
    paged = draw.random() < PAGE
    numbered = draw.random() < 0.7
    gold = {fact.document for fact in one.facts}
    steps = []
    for fact in one.facts:
        texts = relations[fact.relation]
        called = kinds[base.kinds[fact.head]]["called"]
        near = _near(base, fact, gold, draw)
        page = _page(fact, near, draw) if paged else [fact.document]
        steps.append(
            Step(
                need=texts["need"].format(x=fact.head),
                vague=once(texts["need"].format(x=called)),
                queries=tuple(q.format(x=fact.head) for q in (*texts["seek"], *texts["ask"])),
                found=tuple(f.format(x=fact.head, y=fact.tail) for f in texts["found"]),
                tail=fact.tail,
                gold=_passage(base, page, numbered),
                near=tuple(_passage(base, [name], numbered) for name in near if name not in page),
            )
        )
    return Story(one.text, tuple(steps))


def _near(base: Base, fact: Fact, gold: set[str], draw: random.Random) -> list[str]:
    """Documents about the same entity, of the same relation, and others; none of `gold`."""
    same, alike = _neighbours(base)
    about = [name for name in same[fact.head] if name not in gold]
    kin = [name for name in alike[fact.relation] if name not in gold]
    rest = [name for name in draw.sample(sorted(base.documents), 16) if name not in gold]
    chosen = [*about, *draw.sample(kin, min(6, len(kin))), *rest[:9]]
    return list(dict.fromkeys(chosen))


@cache
def _titles(names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[name.rpartition(" ")[0]].append(name)
    return found


def _neighbours(base: Base) -> tuple[Mapping[str, list[str]], Mapping[str, list[str]]]:
    """Documents by entity, and by relation."""
    alike: dict[str, list[str]] = defaultdict(list)
    for fact in base.facts:
        alike[fact.relation].append(fact.document)
    return _titles(tuple(base.documents)), alike


def _page(fact: Fact, near: Sequence[str], draw: random.Random) -> list[str]:
    """The document of a fact between up to two others about the same entity."""
    parts = [fact.document, *[name for name in near if name.rpartition(" ")[0] == fact.head][:2]]
    draw.shuffle(parts)
    return parts


def _passage(base: Base, parts: Sequence[str], numbered: bool) -> Passage:
    """Documents about one entity as one passage, titled by the entity or by the first of them."""
    title = parts[0] if numbered else parts[0].rpartition(" ")[0]
    return Passage(title, " ".join(base.documents[part] for part in parts))


def of_prose(stories: Sequence[Mapping[str, Any]], prose: Sequence[Passage]) -> list[Story]:
    """The stories of traces.toml; what is near a step is the text of other stories, and `prose`."""
    golds = [[Passage(s["title"], s["text"]) for s in story["step"]] for story in stories]
    found = []
    for at, story in enumerate(stories):
        others = [one for place, row in enumerate(golds) if place != at for one in row]
        steps = tuple(
            Step(
                step["need"],
                step.get("vague", step["need"]),
                tuple(step["queries"]),
                tuple(step["found"]),
                step["tail"],
                gold,
                (*others, *prose),
            )
            for step, gold in zip(story["step"], golds[at], strict=True)
        )
        found.append(Story(story["question"], steps))
    return found


def tell(story: Story, prompts: Mapping[str, Any], draw: random.Random) -> Dialogue:
    """A dialogue in the words of `prompts`: the keys system, question and document.

    A passage is shown at most once, and no query is asked twice.
    """
    width = draw.choice(PASSAGES)
    parametric = draw.random() < PARAMETRIC
    messages = [
        Message("system", prompts["system"]),
        Message("user", _filled(prompts["question"], question=story.question)),
    ]
    number = misses = 0
    thought, marker = plan(story, draw), "Initial Query"
    shown: set[Passage] = {step.gold for step in story.steps}
    for place, step in enumerate(story.steps):
        last = place == len(story.steps) - 1
        wrong = draw.choice(LOST if parametric and last else MISSES)
        queries = _queries(story, place, wrong + 1, draw)
        for turn, query in enumerate(queries):
            messages.append(Message("assistant", f"{thought}\n{marker}: {query}"))
            marker = "Refined Query"
            number += 1
            hit = turn == len(queries) - 1
            recalled = hit and parametric and last
            passages = _unseen(step, shown, 0 if recalled else width - hit, draw)
            if hit:
                passages.insert(draw.randint(0, len(passages)), step.gold)
            lines = [step.gold.text] if recalled else [titled(one) for one in passages]
            document = _filled(prompts["document"], number=str(number), passages="\n".join(lines))
            messages.append(Message("user", document))
            thought = _seen(number, [] if recalled else passages, draw)
            if not hit:
                misses += 1
                thought += _worded("nothing", draw, need=step.need)
        source = f"Document {number}" if parametric and last else step.gold.title
        found = draw.choice(step.found)
        if not last:
            need = story.steps[place + 1].need
            thought += _worded("go_on", draw, source=source, found=found, need=need)
    thought += _worded("finish", draw, source=source, found=found)
    messages.append(Message("assistant", f"{thought}\nFinal Answer: {story.answer}"))
    how: Ending = "parametric" if parametric else "retrieval"
    return Dialogue(story.question, tuple(messages), len(story.steps), misses, how)


def _queries(story: Story, place: int, wanted: int, draw: random.Random) -> list[str]:
    """Up to `wanted` different queries for a step; the first of all is the question itself."""
    first = [] if place else [story.question]
    known = {one.casefold() for one in first}
    others = [one for one in story.steps[place].queries if one.casefold() not in known]
    wanted -= len(first)
    return first + draw.sample(others, min(wanted, len(others)))


def _seen(number: int, passages: Sequence[Passage], draw: random.Random) -> str:
    """Which passages a document holds; nothing of one from memory, which has no titles."""
    titles = "; ".join(dict.fromkeys(one.title for one in passages))
    return _worded("holds", draw, n=number, titles=titles) + " " if titles else ""


def read(story: Story, prompts: Mapping[str, Any], draw: random.Random) -> Dialogue:
    """All supporting passages among others, and the answer with the number of its passage."""
    golds = [step.gold for step in story.steps]
    shown = set(golds)
    beside: list[Passage] = []
    for step in story.steps:
        beside += _unseen(step, shown, draw.randint(1, 2), draw)
    passages = [*golds, *beside]
    draw.shuffle(passages)
    texts = [
        _filled(prompts["passage"], number=str(number), title=one.title, text=one.text)
        for number, one in enumerate(passages, start=1)
    ]
    question = _filled(prompts["question"], passages="\n".join(texts), question=story.question)
    cited = passages.index(golds[-1]) + 1
    messages = (
        Message("system", prompts["system"]),
        Message("user", question),
        Message("assistant", f"{story.answer} [{cited}]"),
    )
    return Dialogue(story.question, messages, len(story.steps), 0, "retrieval")


def plan(story: Story, draw: random.Random) -> str:
    """What must be known, in order; only the first subject has a name yet."""
    needs = [story.steps[0].need, *(step.vague for step in story.steps[1:])]
    kind = ("plan_one", "plan_two", "plan_three")[len(needs) - 1]
    return _worded(kind, draw, **dict(zip(("first", "second", "third"), needs, strict=False)))


def titled(passage: Passage) -> str:
    """A passage behind its title, which its text does not repeat: as Auto-RAG's nodes show it."""
    text = passage.text.lstrip("# ").removeprefix(passage.title).lstrip()
    return f"{passage.title}: {text}"


def _unseen(step: Step, shown: set[Passage], wanted: int, draw: random.Random) -> list[Passage]:
    fresh = [one for one in dict.fromkeys(step.near) if one not in shown]
    chosen = draw.sample(fresh, min(wanted, len(fresh)))
    shown.update(chosen)
    return chosen


@cache
def texts() -> dict[str, Any]:
    """The parsed traces.toml."""
    return tomllib.loads(TRACES.read_text(encoding="utf-8"))


def _worded(kind: str, draw: random.Random, **blanks: object) -> str:
    wording: str = draw.choice(texts()[kind])
    return wording.format(**blanks)


def _filled(template: str, **values: str) -> str:
    return Template(template).substitute(values)
