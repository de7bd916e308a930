"""What traces tell of: questions, the steps to their answers, and the passages that say them.

A knowledge base (`hops.py`) gives as many as are asked for, in few wordings; the files of
`stories/` are prose, written for this project by hand, in the manner of encyclopedias.
"""

from __future__ import annotations

import math
import random
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from heapq import nlargest
from pathlib import Path
from typing import Any, Generic, TypeVar

from inference.training.hops import Base, Fact, Question, once, words
from inference.training.seeds import Passage

T = TypeVar("T")

STORIES = Path(__file__).with_name("stories")

NEGATIVES = 6
"""Hard negatives of each kind."""
PAGE = 0.25
"""Share of the traces whose passages are pages that state several facts of an entity."""


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
    alike: tuple[Passage, ...]
    """Passages that were written to be taken for the one that helps."""
    near: tuple[Passage, ...]
    """Others that do not help."""
    far: tuple[Passage, ...]
    """Those of them that are about something else: a retriever that finds nothing has no others."""


@dataclass(frozen=True, slots=True)
class Story:
    """A question and the steps to its answer.

    The answer is the tail of the last step, but where two things are compared: then `conclusion`
    says what follows from the steps, in whichever order they were taken.
    """

    question: str
    steps: tuple[Step, ...]
    answer: str
    conclusion: str | None = None


def of_base(base: Base, one: Question, draw: random.Random, *, hard: bool = False) -> Story:
    """A story over the documents of a knowledge base.

    With `hard` negatives those look alike that a retriever shows where it does not find the one.
    """
    relations, kinds = words()["relations"], words()["kinds"]
    paged = draw.random() < PAGE
    numbered = draw.random() < 0.7
    gold = {fact.document for fact in one.facts}
    steps: list[Step] = []
    for fact in one.facts:
        texts = relations[fact.relation]
        called = kinds[base.kinds[fact.head]]["called"]
        near = _near(base, fact, gold, draw)
        far = [name for name in near if not _names(base, name, fact.head)]
        page = _page(fact, near, draw) if paged else [fact.document]
        ask = texts["ask"][0].format(x=fact.head)
        asked = ask if steps else f"{one.text} {ask}"
        negatives = _hard(base, fact, asked, gold) if hard else []
        alike = tuple(_passage(base, [name], numbered) for name in negatives)
        steps.append(
            Step(
                need=texts["need"].format(x=fact.head),
                vague=once(texts["need"].format(x=called)),
                queries=tuple(q.format(x=fact.head) for q in (*texts["seek"], *texts["ask"])),
                found=tuple(f.format(x=fact.head, y=fact.tail) for f in texts["found"]),
                tail=fact.tail,
                gold=_passage(base, page, numbered),
                alike=alike,
                near=tuple(_passage(base, [name], numbered) for name in near if name not in page),
                far=(*alike, *(_passage(base, [name], numbered) for name in far)),
            )
        )
    return Story(one.text, tuple(steps), steps[-1].tail)


def of_prose(
    stories: Sequence[Mapping[str, Any]], prose: Sequence[Passage], *, hard: bool = False
) -> list[Story]:
    """Stories as `written` gives them; near a step are the texts of others, and `prose`.

    With `hard` negatives those look alike too that share most words with what is asked, less
    those that hold what is found.
    """
    golds = [[_written(step) for step in story["step"]] for story in stories]
    every = [*(one for row in golds for one in row), *prose] if hard else []
    search = _Sharing({one: f"{one.title} {one.text}" for one in every})
    found = []
    for at, story in enumerate(stories):
        others = [one for place, row in enumerate(golds) if place != at for one in row]
        alike = [_written(one) for one in story.get("near", ())]
        beside = (*others, *prose)
        steps: list[Step] = []
        for step, gold in zip(story["step"], golds[at], strict=True):
            ask = step["queries"][0]
            asked = ask if steps else f"{story['question']} {ask}"
            told = {one for one in every if step["tail"] in one.text}
            nearest = search.most(asked, without={*golds[at], *told})
            steps.append(
                Step(
                    step["need"],
                    step.get("vague", step["need"]),
                    tuple(step["queries"]),
                    tuple(step["found"]),
                    step["tail"],
                    gold,
                    alike=(*alike, *nearest),
                    near=beside,
                    far=beside,
                )
            )
        found.append(Story(story["question"], tuple(steps), story["answer"], story.get("so")))
    return found


@cache
def written(more: bool = False) -> list[dict[str, Any]]:
    """The stories of all files, in the order of the files' names; with `more` those of `more/` too.

    The shipped adapters have not learned from those.
    """
    files = sorted(STORIES.glob("*.toml")) + (sorted(STORIES.glob("more/*.toml")) if more else [])
    return [
        story
        for file in files
        for story in tomllib.loads(file.read_text(encoding="utf-8"))["story"]
    ]


def _written(row: Mapping[str, str]) -> Passage:
    return Passage(row["title"], row["text"])


def _near(base: Base, fact: Fact, gold: set[str], draw: random.Random) -> list[str]:
    """Documents about the same entity, of the same relation, and others; none of `gold`."""
    same, alike = _neighbours(base)
    about = [name for name in same[fact.head] if name not in gold]
    kin = [name for name in alike[fact.relation] if name not in gold]
    rest = [name for name in draw.sample(sorted(base.documents), 16) if name not in gold]
    chosen = [*about, *draw.sample(kin, min(6, len(kin))), *rest[:9]]
    return list(dict.fromkeys(chosen))


def _hard(base: Base, fact: Fact, asked: str, gold: set[str]) -> list[str]:
    """Documents that are not about a fact's subject, though a search for it might find them.

    NEGATIVES of the same relation whose subjects' names are most alike, as a dense retriever has
    them near, and NEGATIVES that share most with what is `asked`, words weighted by how few
    documents have them.
    """
    free = {
        name: f"{name} {text}"
        for name, text in sorted(base.documents.items())
        if name not in gold and not _names(base, name, fact.head)
    }

    def alike(name: str) -> float:
        subject = name.rpartition(" ")[0]
        return SequenceMatcher(None, subject, fact.head, autojunk=False).ratio()

    _, kin = _neighbours(base)
    related = sorted(free.keys() & set(kin[fact.relation]))
    found = [*nlargest(NEGATIVES, related, alike), *_Sharing(free).most(asked)]
    return list(dict.fromkeys(found))


class _Sharing(Generic[T]):
    """Texts by name, and which of them share most words with others."""

    def __init__(self, texts: Mapping[T, str]) -> None:
        self._words = {name: _words(text) for name, text in texts.items()}
        self._having = Counter(word for those in self._words.values() for word in those)

    def most(self, asked: str, without: Collection[T] = ()) -> list[T]:
        """The NEGATIVES names whose texts share most with `asked`, rare words counting for more."""
        sought = sorted(_words(asked) & self._having.keys())
        weights = {word: math.log(len(self._words) / self._having[word]) for word in sought}

        def shared(name: T) -> float:
            return sum(weights[word] for word in sought if word in self._words[name])

        return nlargest(NEGATIVES, (name for name in self._words if name not in without), shared)


def _names(base: Base, document: str, entity: str) -> bool:
    """Whether an entity's name stands in a document or in its title."""
    return entity in f"{document} {base.documents[document]}"


@cache
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


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
