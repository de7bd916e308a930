"""Data sets of a few lines and a tiny model, for the benchmark of speculation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.questions import CATEGORIES, Questions
from tests.inference.tiny import checkpoint


class Here(Questions):
    """Data sets of a few lines, searched by the words they share with a question."""

    def search(self, questions: Sequence[str], k: int) -> list[list[str]]:
        names = list(self._corpus)
        texts = [row["text"] for row in self._corpus.values()]
        return [[names[at] for at in self.rank(text, texts)][:k] for text in questions]

    def rank(self, question: str, texts: Sequence[str]) -> list[int]:
        shared = [len(set(question.lower().split()) & set(t.lower().split())) for t in texts]
        return sorted(range(len(texts)), key=lambda at: (-shared[at], at))


def lines(file: Path, rows: Sequence[object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    root = tmp_path_factory.mktemp("data")
    turns = [[f"Tell of {name} {at}.", "And again?"] for name in CATEGORIES for at in range(3)]
    rows = [{"category": turn[0].split()[2], "turns": turn} for turn in turns]
    lines(root / "specbench" / "questions.jsonl", rows)
    corpus = [
        {"id": f"p{at}", "title": f"Fox {at}", "text": f"The fox {at} jumps over dog {at + 1}."}
        for at in range(12)
    ]
    lines(root / "hotpotqa" / "corpus.jsonl", corpus)
    questions = [
        {
            "question": f"Which dog does the fox {at} see?",
            "answer": f"dog {at + 1}",
            "supporting": [f"p{at}", f"p{at}"],
        }
        for at in range(9)
    ]
    lines(root / "hotpotqa" / "questions.jsonl", questions)
    return Here(root)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model"), context=2048))
