"""The synthetic knowledge base: invented entities, short passages, questions over 1 to 3 hops.

No name in it exists, so a model answers from the passages or not at all. A question names the
first entity of its chain only; each hop is stated in exactly one document. Entities and chains of
relations belong to one split by a rule that no seed changes, so splits are disjoint whatever
their seeds are. Design: Auto-RAG (arXiv 2411.19443) at small scale; the wording is in hops.toml.
"""

from __future__ import annotations

import hashlib
import json
import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from inference.errors import InferenceInputError
from inference.training.names import draw_name

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
HOPS = (1, 2, 3)
WORDS = Path(__file__).with_name("hops.toml")

STATED = 0.75
"""Share of the relations of an entity that some document states."""
BLANK = 0.35
"""Share of the entities about which one more document states no relation at all."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`relation` leads from `head` to `tail`, and the document `document` alone says so."""

    relation: str
    head: str
    tail: str
    document: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question whose answer is the tail of the last of its facts, each the next one's head."""

    id: str
    text: str
    facts: tuple[Fact, ...]

    @property
    def answer(self) -> str:
        """The tail of the last fact."""
        return self.facts[-1].tail

    @property
    def chain(self) -> tuple[str, ...]:
        """Its relations in order."""
        return tuple(fact.relation for fact in self.facts)

    def plain(self) -> dict[str, Any]:
        """The row of questions.jsonl."""
        return {
            "id": self.id,
            "question": self.text,
            "answer": self.answer,
            "aliases": aliases(self.answer),
            "supporting": [fact.document for fact in self.facts],
            "hops": len(self.facts),
        }


@dataclass(frozen=True, slots=True)
class Base:
    """A knowledge base: its facts, documents (id to text) and questions, and kinds of entities."""

    facts: tuple[Fact, ...]
    documents: Mapping[str, str]
    questions: tuple[Question, ...]
    kinds: Mapping[str, str]


@cache
def words() -> dict[str, Any]:
    """The parsed hops.toml."""
    return tomllib.loads(WORDS.read_text(encoding="utf-8"))


def chains(split: Split) -> list[tuple[str, ...]]:
    """Chains of relations of a split: 3 of 5 per length are for training, 1 each for the others.

    A chain begins anywhere, no relation follows itself, and only the last may end in a value.
    """
    relations = words()["relations"]
    found: list[tuple[str, ...]] = []
    edge: list[tuple[str, ...]] = [(name,) for name in sorted(relations)]
    for _ in HOPS:
        order = sorted(edge, key=lambda chain: _mark("chain", *chain))
        at = {"train": (0, 1, 2), "dev": (3,), "test": (4,)}[split]
        found += [chain for place, chain in enumerate(order) if place % 5 in at]
        edge = [
            (*chain, name)
            for chain in edge
            for name in sorted(relations)
            if relations[name]["head"] == relations[chain[-1]]["tail"] and name not in chain
        ]
    return found


def build(seed: int, split: Split, questions: int = 60) -> Base:
    """A knowledge base of about 250 entities, with up to `questions` questions of each length."""
    if split not in SPLITS:
        raise InferenceInputError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    if questions < 1:
        raise InferenceInputError(f"questions={questions} must be at least 1")
    draw = random.Random(f"hops {seed} {split}")
    kinds = _entities(draw, split)
    facts = tuple(_facts(draw, kinds))
    documents = dict(_documents(draw, split, kinds, facts))
    asked = tuple(_questions(draw, split, facts, questions))
    return Base(facts, dict(sorted(documents.items())), asked, kinds)


def write_hops(folder: Path, *, seed: int, split: Split, questions: int = 60) -> None:
    """Write `folder/docs/*.txt` and `folder/questions.jsonl`; the same arguments, the same bytes.

    `questions` are asked of each length, fewer where the chains of the split do not allow as
    many. Raises InferenceInputError for an unknown split, or where `folder/docs` holds files.
    """
    base = build(seed, split, questions)
    docs = folder / "docs"
    docs.mkdir(parents=True, exist_ok=True)
    if any(docs.iterdir()):
        raise InferenceInputError(f"{docs} is not empty; give a folder without documents")
    for name, text in base.documents.items():
        (docs / f"{name}.txt").write_text(text + "\n", encoding="utf-8", newline="\n")
    rows = [json.dumps(one.plain(), ensure_ascii=False) + "\n" for one in base.questions]
    (folder / "questions.jsonl").write_text("".join(rows), encoding="utf-8", newline="\n")


def aliases(answer: str) -> list[str]:
    """Other ways to write an answer: without its article, its unit, or the word River."""
    first, _, rest = answer.partition(" ")
    if first in ("the", "River"):
        return [rest]
    return [first] if first.isdecimal() and rest else []


def ask(draw: random.Random, chain: tuple[str, ...], head: str) -> str:
    """A question over a chain that names its head and nothing else of it."""
    relations = words()["relations"]
    subject = head
    for name in chain[:-1]:
        subject = draw.choice(relations[name]["of"]).format(x=subject)
    wording: str = draw.choice(relations[chain[-1]]["ask"])
    return once(wording.format(x=subject))


def once(text: str) -> str:
    """A text whose blank was filled with an article although one stood before it."""
    return text.replace("the the ", "the ").replace("the that ", "that ")


def _entities(draw: random.Random, split: Split) -> dict[str, str]:
    """Names and kinds of all entities."""
    found: dict[str, str] = {}
    for kind, facts in words()["kinds"].items():
        wanted = len(found) + facts["count"]
        while len(found) < wanted:
            name = draw_name(draw, kind, words()["names"], list(found))
            if SPLITS[_split(name)] == split:
                found.setdefault(name, kind)
    return found


def _split(name: str) -> int:
    """Place in SPLITS of an entity, by its name alone: 6, 2 and 2 of 10."""
    return (0, 0, 0, 0, 0, 0, 1, 1, 2, 2)[_mark("entity", name) % 10]


def _mark(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:8], "big")


def _facts(draw: random.Random, kinds: Mapping[str, str]) -> Iterator[Fact]:
    """Facts in which no two entities meet twice, so that each hop has one document."""
    values = words()["values"]
    met: set[frozenset[str]] = set()
    for head, kind in kinds.items():
        number = 0
        for name, relation in words()["relations"].items():
            if relation["head"] != kind or draw.random() >= STATED:
                continue
            if relation["tail"] in values:
                tail = _value(draw, values[relation["tail"]])
            else:
                others = [
                    other
                    for other, its in kinds.items()
                    if its == relation["tail"]
                    and other != head
                    and frozenset((head, other)) not in met
                ]
                tail = draw.choice(others)
                met.add(frozenset((head, tail)))
            number += 1
            yield Fact(name, head, tail, f"{head} {number}")


def _value(draw: random.Random, options: list[str] | dict[str, Any]) -> str:
    if isinstance(options, list):
        return draw.choice(options)
    return f"{draw.randint(options['low'], options['high'])}{options['unit']}"


def _documents(
    draw: random.Random, split: Split, kinds: Mapping[str, str], facts: tuple[Fact, ...]
) -> Iterator[tuple[str, str]]:
    """One document a fact, and distractors that name an entity and state no relation of it."""
    relations, hints = words()["relations"], words()["kinds"]
    for fact in facts:
        says = relations[fact.relation]["says"]
        stated = draw.choice(says[:-1] if split == "train" else says)
        stated = stated.format(x=fact.head, y=fact.tail)
        aside = f"{_title(fact.head, kinds)} {draw.choice(hints[kinds[fact.head]]['hints'])}."
        order = [stated] if draw.random() < 0.3 else [stated, aside]
        draw.shuffle(order)
        yield fact.document, " ".join(_capital(text) for text in order)
    for name, kind in kinds.items():
        if draw.random() < BLANK:
            first, second = draw.sample(hints[kind]["hints"], 2)
            title = _title(name, kinds)
            yield f"{name} 0", f"{_capital(title)} {first}. {_capital(title)} also {second}."


def _title(name: str, kinds: Mapping[str, str]) -> str:
    return f"the {name}" if kinds[name] == "river" else name


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _questions(
    draw: random.Random, split: Split, facts: tuple[Fact, ...], wanted: int
) -> Iterator[Question]:
    """Different questions of each length, chains in turn, each from a random head."""
    leaving: dict[tuple[str, str], Fact] = {(fact.relation, fact.head): fact for fact in facts}
    allowed = chains(split)
    for hops in HOPS:
        found: dict[tuple[Fact, ...], None] = {}
        walks = {
            chain: list(_walks(chain, facts, leaving)) for chain in allowed if len(chain) == hops
        }
        for options in walks.values():
            draw.shuffle(options)
        while len(found) < wanted and any(walks.values()):
            for options in walks.values():
                if options and len(found) < wanted:
                    found[options.pop()] = None
        for number, walk in enumerate(found, start=1):
            chain = tuple(fact.relation for fact in walk)
            yield Question(f"{split}-{hops}-{number:03}", ask(draw, chain, walk[0].head), walk)


def _walks(
    chain: tuple[str, ...],
    facts: tuple[Fact, ...],
    leaving: Mapping[tuple[str, str], Fact],
) -> Iterator[tuple[Fact, ...]]:
    """All ways to follow a chain through different entities."""
    for first in facts:
        if first.relation != chain[0]:
            continue
        walk = [first]
        for name in chain[1:]:
            onward = leaving.get((name, walk[-1].tail))
            if onward is None:
                break
            walk.append(onward)
        entities = [walk[0].head, *(fact.tail for fact in walk)]
        if len(walk) == len(chain) and len(set(entities)) == len(entities):
            yield tuple(walk)
