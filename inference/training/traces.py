"""Auto-RAG dialogues and read questions, told from knowledge bases and from prose.

Source: Auto-RAG (arXiv 2411.19443), Algorithm 1 and section 3.2: planning in the first turn,
extraction and what is still missing in the next ones, inference of the answer in the last.
Deviations: the paper lets language models write reasoning and queries and keeps a trace whose
answer is right; here templates write both, so that every trace is right by construction. What is
extracted begins with the titles of the passages: a small model sees from a list it has written
whether what it needs is among them. The first query is the question: its words find the first
passage as well as any, and in prose better than what a small model makes of them. Half of the
rounds help, where the sheet has three quarters; and one may hold what two steps need, since a
search for the question of a comparison finds both of its sides.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, Literal

from inference.requests import Message
from inference.training.seeds import Passage
from inference.training.stories import Step, Story

TRACES = Path(__file__).with_name("traces.toml")

MISSES = (0, 0, 0, 0, 0, 1, 1, 2)
"""Rounds without a use before a hop's document, drawn per hop: the model must ask again."""
LOST = (2, 3, 4)
"""Rounds without a use before a fact comes from memory, drawn per trace: a retriever that finds
nothing must be recognised."""
PASSAGES = (1, 2, 2, 3, 3)
"""Passages of a round, drawn once per trace."""
HARD = 0.75
"""How often a passage about something else is a hard negative, where there is any."""
TOGETHER = 0.25
"""How often the passage of the next step comes along, where there is room for it."""

Ending = Literal["retrieval", "parametric"]


@dataclass(frozen=True, slots=True)
class Manner:
    """How dialogues end in memory: `parametric` is their share, `parametric_prose` that in prose.

    With `lost` 'last' only the last fact comes from there, behind rounds that show look-alikes
    too; with 'any' all facts from a step on, drawn per trace, behind rounds about something else;
    with 'base' so over a knowledge base, and in prose as with 'last'.
    With `hard` negatives what does not help over a knowledge base is mostly what a search finds;
    with `hard_prose` what a search finds is among what does not help in prose.
    `missed` is how often a step is searched for once in vain; None is as in MISSES.
    """

    parametric: float = 0.25
    lost: Literal["last", "any", "base"] = "last"
    hard: bool = False
    hard_prose: bool = False
    parametric_prose: float | None = None
    missed: float | None = None
    missed_prose: float | None = None

    def in_prose(self) -> Manner:
        """The manner of those that are told over prose."""
        share = self.parametric if self.parametric_prose is None else self.parametric_prose
        lost: Literal["last", "any"] = "any" if self.lost == "any" else "last"
        return replace(self, parametric=share, lost=lost, missed=self.missed_prose)

    def misses(self, draw: random.Random) -> int:
        """Rounds without a use before a step is found."""
        return draw.choice(MISSES) if self.missed is None else int(draw.random() < self.missed)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages from the system's to the last assistant turn, told of `story`.

    `misses` rounds did not help, and `joined` steps were found along with the one before.
    """

    story: Story
    messages: tuple[Message, ...]
    misses: int
    joined: int
    ending: Ending

    @property
    def question(self) -> str:
        """What is asked."""
        return self.story.question

    @property
    def hops(self) -> int:
        """Steps to the answer."""
        return len(self.story.steps)


def tell(
    story: Story, prompts: Mapping[str, Any], draw: random.Random, manner: Manner | None = None
) -> Dialogue:
    """A dialogue in the words of `prompts`: the keys system, question and document.

    A passage is shown at most once, and no query is asked twice.
    """
    if story.conclusion and draw.random() < 0.5:
        story = replace(story, steps=story.steps[::-1])
    manner = manner or Manner()
    parametric = draw.random() < manner.parametric
    known = len(story.steps)
    if parametric:
        known = known - 1 if manner.lost == "last" else draw.randrange(known)
    telling = _Telling(story, prompts, draw, draw.choice(PASSAGES), known, manner)
    done = 0
    while done < len(story.steps):
        done += telling.find(done)
    messages = (*telling.messages, telling.answered())
    how: Ending = "parametric" if parametric else "retrieval"
    return Dialogue(story, messages, telling.misses, telling.joined, how)


class _Telling:
    """A dialogue as it grows: what was said so far, and what the next turn begins with.

    Only the first `known` steps are found by searching, the others are recalled.
    """

    def __init__(
        self,
        story: Story,
        prompts: Mapping[str, Any],
        draw: random.Random,
        width: int,
        known: int,
        manner: Manner,
    ) -> None:
        self.messages = [
            Message("system", prompts["system"]),
            Message("user", _filled(prompts["question"], question=story.question)),
        ]
        self.misses = self.joined = 0
        self._story, self._prompts, self._draw = story, prompts, draw
        self._width, self._known, self._manner = width, known, manner
        self._thought = plan(story, draw)
        self._shown = {step.gold for step in story.steps}
        self._number = 0

    def find(self, place: int) -> int:
        """Rounds until the step at `place` is found; how many steps the last of them gave."""
        story, draw = self._story, self._draw
        step = story.steps[place]
        recalled = place >= self._known
        # Whoever recalls one step recalls the next ones too, and searches no more.
        if place > self._known:
            wrong = 0
        else:
            wrong = draw.choice(LOST) if recalled else self._manner.misses(draw)
        queries = _queries(story, place, wrong + 1, draw)
        for query in queries[:-1]:
            self._ask(query)
            lost = recalled and self._manner.lost != "last"
            self._show(self._elsewhere(step) if lost else self._unseen(step, self._width))
            self.misses += 1
            self._thought += _worded("nothing", draw, need=step.need)
        self._ask(queries[-1])
        if recalled:
            self._show_text(step.gold.text)
            self._say(step, f"Document {self._number}", place)
            return 1
        together = story.steps[place : place + 1 + self._along(place)]
        passages = self._unseen(step, self._width - len(together))
        for one in together:
            passages.insert(draw.randint(0, len(passages)), one.gold)
        self._show(passages)
        self.joined += len(together) - 1
        for at, one in enumerate(together):
            self._say(one, one.gold.title, place + at, more=one is not together[-1])
        return len(together)

    def answered(self) -> Message:
        """The last turn."""
        if self._story.conclusion:
            self._thought += _worded("conclude", self._draw, so=self._story.conclusion)
        return Message("assistant", f"{self._thought}\nFinal Answer: {self._story.answer}")

    def _along(self, place: int) -> bool:
        """Whether the next step is found with this one; what is recalled is never shown."""
        if place + 1 >= self._known or self._width == 1:
            return False
        return self._draw.random() < TOGETHER

    def _ask(self, query: str) -> None:
        marker = "Refined Query" if self._number else "Initial Query"
        self.messages.append(Message("assistant", f"{self._thought}\n{marker}: {query}"))
        self._number += 1
        self._thought = ""

    def _show(self, passages: Sequence[Passage]) -> None:
        """Passages as the next document; the turn behind it begins with their titles."""
        self._show_text("\n".join(titled(one) for one in passages))
        titles = "; ".join(dict.fromkeys(one.title for one in passages))
        self._thought = _worded("holds", self._draw, n=self._number, titles=titles) + " "

    def _show_text(self, passages: str) -> None:
        document = _filled(self._prompts["document"], number=str(self._number), passages=passages)
        self.messages.append(Message("user", document))

    def _say(self, step: Step, source: str, place: int, *, more: bool = False) -> None:
        """What was found, and what is still missing unless `more` of it follows."""
        found = self._draw.choice(step.found)
        if more:
            self._thought += _worded("says", self._draw, source=source, found=found) + " "
        elif place == len(self._story.steps) - 1:
            self._thought += _worded("finish", self._draw, source=source, found=found)
        else:
            need = self._story.steps[place + 1].need
            self._thought += _worded("go_on", self._draw, source=source, found=found, need=need)

    def _unseen(self, step: Step, wanted: int) -> list[Passage]:
        return _unseen(step, self._shown, wanted, self._draw)

    def _elsewhere(self, step: Step) -> list[Passage]:
        """A round of passages about something else."""
        pool = [one for one in dict.fromkeys(step.far) if one not in self._shown]
        hard = [one for one in pool if one in step.alike]
        rest = [one for one in pool if one not in step.alike]
        many = sum(self._draw.random() < HARD for _ in range(self._width)) if hard else 0
        chosen = self._draw.sample(hard, min(many, len(hard)))
        chosen += self._draw.sample(rest, min(self._width - len(chosen), len(rest)))
        self._shown.update(chosen)
        return chosen


def _queries(story: Story, place: int, wanted: int, draw: random.Random) -> list[str]:
    """Up to `wanted` different queries for a step; the first of all is the question itself."""
    first = [] if place else [story.question]
    known = {one.casefold() for one in first}
    others = [one for one in story.steps[place].queries if one.casefold() not in known]
    wanted -= len(first)
    return first + draw.sample(others, min(wanted, len(others)))


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
    named = [one for one in golds if one.title.partition(" (")[0] == story.answer]
    cited = passages.index((named or golds)[-1]) + 1
    messages = (
        Message("system", prompts["system"]),
        Message("user", question),
        Message("assistant", f"{story.answer} [{cited}]"),
    )
    return Dialogue(story, messages, 0, 0, "retrieval")


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
    """Up to `wanted` passages that do not help; every second one looks as if it did."""
    chosen: list[Passage] = []
    for _ in range(wanted):
        pools = ([one for one in kind if one not in shown] for kind in (step.alike, step.near))
        alike, near = (list(dict.fromkeys(pool)) for pool in pools)
        pool = alike if alike and draw.random() < 0.5 else near
        if not pool:
            break
        chosen.append(draw.choice(pool))
        shown.add(chosen[-1])
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
