"""The local inference layer: requests in, outputs with a ledger out.

Importing this package is cheap; torch is loaded only when an engine is opened.
"""

from inference.budget import Budget, Usage
from inference.engine import Capability, Engine, EngineConfig
from inference.errors import InferenceError, InferenceInputError
from inference.grammar import Grammar
from inference.requests import (
    Chunk,
    FinishReason,
    Message,
    Output,
    Request,
    SamplingParams,
    Score,
    Stats,
    TokenLogprob,
)

__all__ = [
    "Budget",
    "Capability",
    "Chunk",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "Grammar",
    "InferenceError",
    "InferenceInputError",
    "Message",
    "Output",
    "Request",
    "SamplingParams",
    "Score",
    "Stats",
    "TokenLogprob",
    "Usage",
]
