"""The table of KV-cache policies."""

from __future__ import annotations

from inference.kv.base import KVPolicy
from inference.kv.full import Full
from inference.kv.random import Random
from inference.kv.streaming_llm import StreamingLLM

KV_POLICIES: dict[str, type[KVPolicy]] = {
    "full": Full,
    "random": Random,
    "streaming_llm": StreamingLLM,
}
