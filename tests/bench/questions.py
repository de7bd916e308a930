"""What the benchmark of speculation asks: Spec-Bench, HotpotQA over passages, long documents."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from inference import Message
from inference.errors import InferenceInputError
from tests.bench import ROOT

T = TypeVar("T")

DATA = ROOT.parent / "shared" / "data"
CATEGORIES = (
    *("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
    *("translation", "summarization", "qa", "math_reasoning", "rag"),
)
"""Of Spec-Bench; the first eight are MT-bench's."""
MT_BENCH = 8
READ, FOUND = 5, 10
"""Passages in a prompt, and passages found."""
QUOTED = (
    "{passages}\n\nQuestion: {question}\n"
    "Answer with a short phrase, then copy the passages that the answer is taken from."
)
ALONE = "Question: {question}\nAnswer with a short phrase, then explain the answer."
SHORT = "{passages}\n\nQuestion: {question}\nAnswer with a short phrase."
SEED = 2502


@dataclass(frozen=True)
class Ask:
    """One prompt, and what drafters may read beside it."""

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    draft_prompt: tuple[Message, ...] | None = None

    @classmethod
    def of(cls, text: str, *references: str) -> Ask:
        """One turn of a user's."""
        return cls((Message("user", text),), references)


@dataclass(frozen=True)
class Question:
    """A question about a long document: `excerpt` is what was retrieved from it, in its order."""

    text: str
    answer: str
    document: str
    excerpt: str


class Missing(InferenceInputError):
    """A data set that is not on this machine."""


class Questions:
    """The data sets under a folder; Missing where one is not there."""

    def __init__(self, root: Path = DATA) -> None:
        self.root = root

    def category(self, name: str, count: int) -> list[Ask]:
        """`count` first turns spread over a category, or all of them where there are fewer."""
        return [Ask.of(turn) for turn in _spread(self._turns[name], count)]

    def hotpotqa(self, count: int) -> list[Ask]:
        """Questions with the best passages, to be answered with the passages."""
        return [
            Ask.of(QUOTED.format(passages=_numbered(found[:READ]), question=question["question"]))
            for question, found in self._found(count)
        ]

    def readings(self, count: int) -> dict[str, list[Ask]]:
        """The same questions, by where drafters meet what was retrieved: prompt and references."""
        kinds: dict[str, list[Ask]] = {"both": [], "prompt": [], "references": [], "none": []}
        for question, found in self._found(count):
            text = question["question"]
            quoted = Ask.of(QUOTED.format(passages=_numbered(found[:READ]), question=text))
            alone = Ask.of(ALONE.format(question=text))
            given = tuple(passage["text"] for passage in found)
            kinds["both"].append(Ask(quoted.messages, given))
            kinds["prompt"].append(quoted)
            kinds["references"].append(Ask(alone.messages, given))
            kinds["none"].append(alone)
        return kinds

    def long(
        self, count: int, tokens: int, excerpt: int, size: Callable[[str], int]
    ) -> list[Question]:
        """Questions about documents of at most `tokens`; their excerpts have at most `excerpt`.

        A document holds the supporting passages and others in random order, from a fixed seed;
        an excerpt the passages most similar to the question, in the order of the document. All
        are counted by `size`.
        """
        made = []
        chance = random.Random(SEED)
        for question in _spread(self._questions, count):
            held = self._held(question["supporting"], tokens, size, chance)
            ranked = self.rank(question["question"], [_titled(one) for one in held])
            chosen, room = set(), excerpt
            for at in ranked:
                room -= size(_titled(held[at]))
                if room < 0:
                    break
                chosen.add(at)
            made.append(
                Question(
                    question["question"],
                    question["answer"],
                    "\n\n".join(map(_titled, held)),
                    "\n\n".join(_titled(one) for at, one in enumerate(held) if at in chosen),
                )
            )
        return made

    def search(self, questions: Sequence[str], k: int) -> list[list[str]]:
        """Ids of the best `k` documents of the corpus for each question, best first."""
        from retrieval.cache import index_for_docs
        from retrieval.table import retriever_config

        index = index_for_docs(self._file("hotpotqa", "corpus.jsonl"))
        found = retriever_config("hybrid").open(index).search(list(questions), k)
        return [list(dict.fromkeys(hit.passage.document_id for hit in hits)) for hits in found]

    def rank(self, question: str, texts: Sequence[str]) -> list[int]:
        """Places of texts, most similar to the question first."""
        from retrieval.embedding import default_embedder

        embedder = default_embedder()
        scores = embedder.embed(list(texts)) @ embedder.embed([question])[0]
        return sorted(range(len(texts)), key=lambda at: (-float(scores[at]), at))

    def _held(
        self,
        supporting: Sequence[str],
        tokens: int,
        size: Callable[[str], int],
        chance: random.Random,
    ) -> list[dict[str, Any]]:
        """Passages of a document: the supporting first, shuffled with as many as fit."""
        needed = dict.fromkeys(supporting)
        others = [name for name in self._corpus if name not in needed]
        chance.shuffle(others)
        held, room = [], tokens
        for name in (*needed, *others):
            room -= size(_titled(self._corpus[name]) + "\n\n")
            if room < 0:
                break
            held.append(self._corpus[name])
        if not held:
            raise InferenceInputError(
                f"no passage fits into a document of {tokens} tokens; ask for more"
            )
        chance.shuffle(held)
        return held

    def _found(self, count: int) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        asked = _spread(self._questions, count)
        found = self.search([question["question"] for question in asked], FOUND)
        return [
            (question, [self._corpus[name] for name in names])
            for question, names in zip(asked, found, strict=True)
        ]

    @cached_property
    def _turns(self) -> dict[str, list[str]]:
        turns: dict[str, list[str]] = {name: [] for name in CATEGORIES}
        for row in _rows(self._file("specbench", "questions.jsonl")):
            turns[row["category"]].append(row["turns"][0])
        return turns

    @cached_property
    def _questions(self) -> list[dict[str, Any]]:
        return _rows(self._file("hotpotqa", "questions.jsonl"))

    @cached_property
    def _corpus(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in _rows(self._file("hotpotqa", "corpus.jsonl"))}

    def _file(self, folder: str, name: str) -> Path:
        path = self.root / folder / name
        if not path.is_file():
            raise Missing(f"there is no {path}; the evaluation data lies beside the project")
        return path


def about(question: Question, *, full: bool = True, quote: bool = False) -> Ask:
    """The question over the document, drafted from the excerpt; or over the excerpt alone."""
    form = QUOTED if quote else SHORT
    short = Ask.of(form.format(passages=question.excerpt, question=question.text)).messages
    if not full:
        return Ask(short)
    long = Ask.of(form.format(passages=question.document, question=question.text)).messages
    return Ask(long, draft_prompt=short)


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall of words, as HotpotQA and SQuAD count it."""
    said, meant = _words(answer), _words(truth)
    common = (Counter(said) & Counter(meant)).total()
    return 2 * common / (len(said) + len(meant)) if common else 0.0


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in plain.split() if word not in {"a", "an", "the"}]


def _titled(passage: dict[str, Any]) -> str:
    return f"{passage['title']}\n{passage['text']}"


def _numbered(passages: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(
        f"[{at}] {one['title']}: {one['text']}" for at, one in enumerate(passages, start=1)
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _spread(items: Sequence[T], count: int) -> list[T]:
    if count >= len(items):
        return list(items)
    return [items[at * len(items) // count] for at in range(count)]
