"""Adapters that come along, each for one model: a folder of `inference/weights/` with its card."""

from __future__ import annotations

import json
from pathlib import Path

from inference.adapters.folder import WEIGHTS
from inference.errors import AdapterInputError
from inference.models.manifest import sha256

SHIPPED = Path(__file__).parents[1] / "weights"
BASE = "base_digest"
"""Key of a card's options: the weights digest of the model an adapter was trained on."""


def shipped(name: str, base: str) -> Path | None:
    """The folder of the adapter `name` for the model whose weights digest is `base`.

    None where no such adapter comes along or it was trained on another model. Raises
    AdapterInputError where its weights are not those that its card names.
    """
    folder = SHIPPED / name
    card = folder / "card.json"
    if not card.is_file():
        return None
    facts = json.loads(card.read_text(encoding="utf-8"))
    if facts["options"].get(BASE) != base:
        return None
    if facts["files"].get(WEIGHTS) != sha256(folder / WEIGHTS):
        raise AdapterInputError(
            f"{folder / WEIGHTS} is not the file that its card names; install the package again"
        )
    return folder
