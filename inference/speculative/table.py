"""The table of drafters."""

from __future__ import annotations

from inference.speculative.base import Drafter
from inference.speculative.llmcad import LLMCad
from inference.speculative.lookahead import Lookahead
from inference.speculative.medusa import Medusa
from inference.speculative.prompt_lookup import PromptLookup
from inference.speculative.rapid import Rapid

DRAFTERS: dict[str, type[Drafter]] = {
    "llmcad": LLMCad,
    "lookahead": Lookahead,
    "medusa": Medusa,
    "prompt_lookup": PromptLookup,
    "rapid": Rapid,
}
