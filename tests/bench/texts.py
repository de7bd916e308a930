"""Prompts that the rows of the engine's benchmark share."""

from __future__ import annotations

from inference.models import load_tokenizer
from tests.bench import ROOT

TEXT = (
    "The harbour master kept a ledger of every ship, its cargo and the hour at which it came in, "
    "and in the margins he wrote what the captains told him about the weather further out. "
)


def chapters(count: int) -> list[str]:
    """Prompts of different lengths that a model goes on with for long."""
    return [f"Chapter {at + 1}. {TEXT}" + " ".join(TEXT.split()[: at % 7]) for at in range(count)]


def corpus_ids() -> list[int]:
    """Token ids of the texts of the sample corpus, one after the other."""
    files = sorted((ROOT / "data" / "corpus").rglob("*.md"))
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    ids: list[int] = load_tokenizer("default").encode(text, add_special_tokens=False).ids
    return ids


def window(ids: list[int], start: int, length: int) -> list[int]:
    """`length` ids from `start` on, round the end."""
    repeats = -(-(start + length) // len(ids))
    return (ids * repeats)[start : start + length]
