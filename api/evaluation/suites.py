"""Sets of questions over documents: `NAME:OPTION=VALUE`, or a JSONL file beside documents.

A suite is data: questions with gold answers, and what is to be indexed. What a suite withholds
(`poisoned`) it withholds by its documents, so that no workflow can tell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.evaluation.errors import SuiteInputError
from api.evaluation.synthetic import synthetic
from inference.named import Methods
from inference.training.hops import Split
from retrieval.build import Progress
from retrieval.cache import index_for_docs
from retrieval.index import open_index

ROOT = Path(__file__).resolve().parents[2]
HOTPOTQA = "RAGWRIGHT_HOTPOTQA"
"""Variable that names the folder of HotpotQA; without it, `shared/data/hotpotqa` beside the
project's folder is looked at."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and what is right; `supporting` are ids of documents or passages that say so."""

    id: str
    text: str
    answer: str
    aliases: tuple[str, ...] = ()
    supporting: tuple[str, ...] = ()
    hops: int | None = None

    @property
    def golds(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)


@dataclass(frozen=True, slots=True)
class Suite:
    """Questions and the documents they are about, None where there are none.

    `name` is its spelling with all options, which opens it again. `poisoned` says that the
    documents are about something else, so that no supporting one is in the index.
    """

    name: str
    questions: tuple[Question, ...]
    docs: Path | None
    poisoned: bool = False

    def chosen(self, limit: int | None) -> tuple[Question, ...]:
        """`limit` questions spread evenly over the suite, in its order; all without a limit."""
        n = len(self.questions)
        if limit is None or limit >= n:
            return self.questions
        return tuple(self.questions[place * n // limit] for place in range(limit))

    def index(self, progress: Progress | None = None) -> Path | None:
        """The index of the documents, built where it is missing.

        Raises SuiteInputError where a supporting id is not in it: its recall could only be 0.
        """
        if self.docs is None:
            return None
        folder = index_for_docs(self.docs, progress)
        if not self.poisoned:
            index = open_index(folder)
            for question in self.questions:
                for name in question.supporting:
                    if name not in index.numbers and index.row(name) is None:
                        raise SuiteInputError(
                            f"suite {self.name!r}: question {question.id!r} is supported by "
                            f"{name!r}, which is no document of {self.docs}; mend the id"
                        )
        return folder


def digest_of(questions: Sequence[Question]) -> str:
    """Hash of the questions and everything they are scored by."""
    text = json.dumps([asdict(one) for one in questions], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class SuiteConfig(BaseModel):
    """Options of a suite, as they stand behind its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def open(self) -> Suite:
        """Read the questions; raises SuiteInputError where the data is not on this machine."""
        raise TypeError(f"{type(self).__name__} does not say how to open its suite")


class SampleSuite(SuiteConfig):
    """The project's own questions over its sample corpus; they come with a source checkout."""

    def open(self) -> Suite:
        """Read data/questions.jsonl."""
        folder = ROOT / "data"
        file = folder / "questions.jsonl"
        if not file.is_file():
            raise SuiteInputError(
                f"suite 'sample' needs {file}, which comes with a source checkout; run from there"
            )
        return Suite(METHODS.spell(self), read_questions(file), folder / "corpus")


class HotpotQASuite(SuiteConfig):
    """HotpotQA (arXiv 1809.09600): `corpus.jsonl` and `questions.jsonl` in the folder `path`."""

    path: Path | None = None

    def open(self) -> Suite:
        """Read the questions of the folder."""
        named = self.path or os.environ.get(HOTPOTQA)
        folder = Path(named or ROOT.parent / "shared" / "data" / "hotpotqa").absolute()
        for name in ("questions.jsonl", "corpus.jsonl"):
            if not (folder / name).is_file():
                raise SuiteInputError(
                    f"suite 'hotpotqa' finds no {folder / name}; name the folder that holds "
                    f"questions.jsonl and corpus.jsonl by hotpotqa:path=FOLDER or {HOTPOTQA}"
                )
        spelled = METHODS.spell(self.model_copy(update={"path": folder}))
        return Suite(spelled, read_questions(folder / "questions.jsonl"), folder / "corpus.jsonl")


class SyntheticHopsSuite(SuiteConfig):
    """Questions over one to three hops of an invented knowledge base, `questions` of each length.

    With `poisoned`, the documents are those of another split, whose entities are others, less
    all that name an entity or an answer of the questions.
    """

    split: Split = "test"
    seed: int = Field(0, ge=0)
    questions: int = Field(60, ge=1)
    poisoned: bool = False

    def open(self) -> Suite:
        """Write the base where it is not there yet, and read its questions."""
        folder = synthetic(self.split, self.seed, self.questions, self.poisoned)
        questions = tuple(
            Question(**{**asdict(one), "supporting": tuple(f"{n}.txt" for n in one.supporting)})
            for one in read_questions(folder / "questions.jsonl")
        )
        return Suite(METHODS.spell(self), questions, folder / "docs", self.poisoned)


SUITES: dict[str, type[SuiteConfig]] = {
    "sample": SampleSuite,
    "hotpotqa": HotpotQASuite,
    "synthetic-hops": SyntheticHopsSuite,
}
METHODS: Methods[SuiteConfig] = Methods("suite", SUITES, SuiteInputError)


def open_suite(text: str, docs: Path | None = None) -> Suite:
    """The suite of a name with options, or of a .jsonl file over `docs`; raises SuiteInputError."""
    if not text.endswith(".jsonl"):
        if docs is not None:
            raise SuiteInputError(
                f"--docs {docs} goes with a .jsonl file; suite {text!r} has documents of its own"
            )
        return METHODS.parse(text).open()
    file = Path(text).absolute()
    if not file.is_file():
        raise SuiteInputError(
            f"{text}: no such file of questions; known suites: {', '.join(SUITES)}"
        )
    return Suite(str(file), read_questions(file), None if docs is None else docs.absolute())


def read_questions(file: Path) -> tuple[Question, ...]:
    """Rows of `id, question, answer[, aliases, supporting, hops]`; raises SuiteInputError."""
    found: dict[str, Question] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SuiteInputError(
                f"{place}: not JSON ({error}); write one JSON object a line"
            ) from None
        question = _question(row, place)
        if question.id in found:
            raise SuiteInputError(f"{place}: id {question.id!r} stands twice; give each its own")
        found[question.id] = question
    if not found:
        raise SuiteInputError(f"{file}: holds no question; put rows into it")
    return tuple(found.values())


def _question(row: Any, place: str) -> Question:
    if not isinstance(row, dict):
        raise SuiteInputError(f"{place}: {row!r} is no object; write id, question and answer")
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        row = {**row, "id": str(row["id"])}
    for key in ("id", "question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise SuiteInputError(
                f"{place}: {key}={row.get(key)!r} must be a text with words in it"
            )
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("aliases", "supporting"):
        values = row.get(key, [])
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise SuiteInputError(f"{place}: {key}={values!r} must be a list of texts")
        lists[key] = tuple(dict.fromkeys(values))
    hops = row.get("hops")
    if hops is not None and (not isinstance(hops, int) or isinstance(hops, bool) or hops < 1):
        raise SuiteInputError(f"{place}: hops={hops!r} must be a whole number of at least 1")
    return Question(row["id"], row["question"], row["answer"], **lists, hops=hops)
