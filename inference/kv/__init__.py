"""KV-cache policies: the contract, the table, and how a policy is named on a command line."""

from inference.kv.base import KVPolicy, Moment
from inference.kv.full import Full
from inference.kv.random import Random
from inference.kv.streaming_llm import StreamingLLM

KV_POLICIES: dict[str, type[KVPolicy]] = {
    "full": Full,
    "random": Random,
    "streaming_llm": StreamingLLM,
}

__all__ = ["KV_POLICIES", "Full", "KVPolicy", "Moment", "Random", "StreamingLLM"]
