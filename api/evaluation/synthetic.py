"""The synthetic knowledge base as files in the cache, whole or poisoned."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from inference.models import models_home
from inference.training.hops import SPLITS, Question, Split, aliases, build, write_hops


def evals_home() -> Path:
    """Where results and written suites lie: `evals/` beside the folder of the models."""
    return models_home().parent / "evals"


def synthetic(split: Split, seed: int, questions: int, poisoned: bool) -> Path:
    """The folder with `questions.jsonl` and `docs/` of a base, named by the hash of its content.

    It is written beside and moved in, so that an interruption leaves none by halves.
    """
    home = evals_home() / "suites"
    home.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".", dir=home))
    try:
        write_hops(scratch, seed=seed, split=split, questions=questions)
        if poisoned:
            _poison(scratch / "docs", split, seed, questions)
        name = f"hops-{split}-{seed}{'-poisoned' if poisoned else ''}-{_digest(scratch)[:12]}"
        folder = home / name
        if not folder.exists():
            scratch.rename(folder)
        return folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def irrelevant(split: Split, seed: int, questions: int) -> dict[str, str]:
    """Documents, by name, that say nothing about any question of the base.

    They are those of the next split, whose entities are others by their names alone, less each
    that names an entity, an answer or an alias of the questions (values such as a year occur in
    every base).
    """
    asked = build(seed, split, questions).questions
    words = _named(asked)
    other = SPLITS[(SPLITS.index(split) + 1) % len(SPLITS)]
    documents = build(seed, other, 1).documents
    return {name: text for name, text in documents.items() if not words.search(f"{name}\n{text}")}


def _named(asked: Iterable[Question]) -> re.Pattern[str]:
    """What stands for an entity or an answer of the questions, as whole words, in any case."""
    names = {name for one in asked for fact in one.facts for name in (fact.head, fact.tail)}
    names |= {alias for name in set(names) for alias in aliases(name)}
    listed = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<!\w)(?:{listed})(?!\w)", re.IGNORECASE)


def _poison(docs: Path, split: Split, seed: int, questions: int) -> None:
    shutil.rmtree(docs)
    docs.mkdir()
    for name, text in irrelevant(split, seed, questions).items():
        (docs / f"{name}.txt").write_text(text + "\n", encoding="utf-8", newline="\n")


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            whole.update(f"{file.relative_to(folder).as_posix()}\n".encode())
            whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
