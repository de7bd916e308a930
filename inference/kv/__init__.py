"""KV-cache policies: the contract, the table, and how a policy is named in text."""

from inference.kv.base import KVPolicy, Moment
from inference.kv.full import Full
from inference.kv.random import Random
from inference.kv.spec import build, name_of, parse, spell
from inference.kv.streaming_llm import StreamingLLM
from inference.kv.table import KV_POLICIES

__all__ = [
    "KV_POLICIES",
    "Full",
    "KVPolicy",
    "Moment",
    "Random",
    "StreamingLLM",
    "build",
    "name_of",
    "parse",
    "spell",
]
