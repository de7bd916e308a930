"""Key/value entries of a prompt as bytes: computed here, read there.

This is the transfer between a prompt machine and a token machine (Splitwise, arXiv 2311.18677,
section IV), and how a shrunken cache outlives its request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from inference.errors import InferenceInputError

if TYPE_CHECKING:
    from inference.kv import KVPolicy
    from inference.native.compact import Compact
    from inference.native.lean import Lean
    from inference.native.sequence import Sequence as Row
    from inference.native.store import Store

FORMAT = "ragwright-kv-1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The entries of `token_ids`: per layer, and per key/value head where a policy shrank them.

    `tensors` are "keys.L", "values.L" [tokens, heads, head_dim] of a whole cache, or "keys.L.H",
    "values.L.H" [entries, head_dim] and "positions.L.H" [entries] of a shrunken one, unrotated
    if the policy says so. `model` and `adapters` are digests: entries of other weights are noise.
    """

    model: str
    adapters: tuple[str, ...]
    policy: str
    token_ids: tuple[int, ...]
    tensors: dict[str, torch.Tensor]

    @property
    def shrunken(self) -> bool:
        """Whether a policy held these entries."""
        return bool(self.policy)

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        ids = torch.tensor(self.token_ids)
        facts = {
            "format": FORMAT,
            "model": self.model,
            "adapters": json.dumps(self.adapters),
            "policy": self.policy,
        }
        return save({"token_ids": ids, **self.tensors}, metadata=facts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """Read what `to_bytes` wrote; InferenceInputError for anything else."""
        try:
            length = int.from_bytes(data[:8], "little")
            facts: dict[str, Any] = json.loads(data[8 : 8 + length])["__metadata__"]
            if facts["format"] != FORMAT:
                raise KeyError(f"format {facts['format']!r}")
            tensors = load(data)
            ids = tensors.pop("token_ids").tolist()
            adapters = tuple(json.loads(facts["adapters"]))
            return cls(facts["model"], adapters, facts["policy"], tuple(ids), tensors)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InferenceInputError(
                f"{len(data)} bytes are no key/value entries of this engine ({error}); "
                "give what export_cache returned, whole"
            ) from error

    @classmethod
    def of_store(
        cls, model: str, row: Row, store: Store, runs: Sequence[tuple[int, int]]
    ) -> Snapshot:
        """Copy the entries of a row that shares the engine's store."""
        tensors: dict[str, torch.Tensor] = {}
        for layer in store.keys:
            keys, values = store.read(layer, runs)
            tensors[f"keys.{layer}"] = keys.clone().contiguous().cpu()
            tensors[f"values.{layer}"] = values.clone().contiguous().cpu()
        return cls(model, _digests(row), "", tuple(row.ids[: row.cached]), tensors)

    @classmethod
    def of_cache(cls, model: str, row: Row, cache: Compact) -> Snapshot:
        """Copy the entries of a row that has a cache of its own."""
        tensors = {
            f"{name}.{layer}.{at}": held.clone().contiguous().cpu()
            for layer, heads in enumerate(cache.heads)
            for at, head in enumerate(heads)
            for name, held in (
                ("keys", head.keys),
                ("values", head.values),
                ("positions", head.positions),
            )
        }
        policy = spelled(cache.policy)
        return cls(model, _digests(row), policy, tuple(row.ids[: row.cached]), tensors)

    def revive(self, cache: Compact, device: torch.device) -> None:
        """Put the entries of a shrunken snapshot into an empty cache of the same policy."""
        for layer, heads in enumerate(cache.heads):
            for at, head in enumerate(heads):
                head.replace(
                    *(
                        self.tensors[f"{name}.{layer}.{at}"].to(device, copy=True)
                        for name in ("keys", "values", "positions")
                    )
                )


def spelled(policy: KVPolicy) -> str:
    """A policy and its options as text."""
    return json.dumps({"name": type(policy).__name__, **policy.model_dump()}, sort_keys=True)


def _digests(row: Row) -> tuple[str, ...]:
    return tuple(adapter.digest for adapter in row.adapters)


def check_past(past: Snapshot, model: str, lean: Lean, row: Row, policy: KVPolicy) -> None:
    """Raise InferenceInputError unless a row under `policy` may go on from a snapshot."""
    problems = {
        "was computed by another model, or with another dtype": past.model != model,
        "was computed with other adapters": past.adapters != _digests(row),
        f"was shrunk by {past.policy or 'no policy'}, and the request asks for {spelled(policy)}": (
            past.policy != spelled(policy)
        ),
        "holds tokens that are not the beginning of the prompt": (
            tuple(row.ids[: len(past.token_ids)]) != past.token_ids
        ),
        "holds the whole prompt, and at least one token must follow it": (
            len(row.ids) <= len(past.token_ids)
        ),
        "lacks layers or heads of the model": any(
            f"keys.{layer}.{head}" not in past.tensors
            for layer in range(len(lean.layers))
            for head in range(lean.kv_heads)
        )
        and past.shrunken,
    }
    for problem, found in problems.items():
        if found:
            raise InferenceInputError(f"the past of the request {problem}; export it again for it")
