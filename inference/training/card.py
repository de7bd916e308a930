"""The card of a trained artefact: how it was made, and from what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

CARD = "card.json"
PACKAGES = ("ragwright", "torch", "transformers", "safetensors")


@dataclass(frozen=True, slots=True)
class Card:
    """Recipe, base model (sha256 of its files), plan with seed, digest of the data, results."""

    recipe: str
    base: str
    base_files: dict[str, str]
    dtype: str
    options: dict[str, Any]
    plan: dict[str, Any]
    examples: int
    data: str
    losses: list[float]
    """Mean loss of each optimizer step, in nats per token or term."""
    tokens: int
    files: dict[str, str]
    """sha256 of each weight file beside the card."""
    scores: dict[str, Any] = field(default_factory=dict)
    """What was measured of the result, on data it has not learned."""
    versions: dict[str, str] = field(default_factory=lambda: {p: version(p) for p in PACKAGES})

    def write(self, folder: Path) -> None:
        """Save as card.json in `folder`."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        (folder / CARD).write_text(text, encoding="utf-8")
