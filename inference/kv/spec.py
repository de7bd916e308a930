"""A policy by its name and options, as text (`streaming_llm:sinks=4,recent=60`) or as a mapping."""

from __future__ import annotations

from inference.errors import KVInputError
from inference.kv.base import KVPolicy
from inference.kv.table import KV_POLICIES
from inference.named import Methods

POLICIES: Methods[KVPolicy] = Methods("KV policy", KV_POLICIES, KVInputError)

parse = POLICIES.parse
build = POLICIES.build
name_of = POLICIES.name_of
spell = POLICIES.spell
