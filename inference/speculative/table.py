"""The table of drafters."""

from __future__ import annotations

from inference.speculative.base import Drafter
from inference.speculative.medusa import Medusa
from inference.speculative.prompt_lookup import PromptLookup

DRAFTERS: dict[str, type[Drafter]] = {
    "prompt_lookup": PromptLookup,
    "medusa": Medusa,
}
