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
from inference.kv import Full, KVPolicy, spell

if TYPE_CHECKING:
    from inference.native.compact import Compact
    from inference.native.sequence import Sequence as Row
    from inference.native.store import Store

FORMAT = "ragwright-kv-1"

PARTS = ("keys", "values", "positions")


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The entries of `token_ids`: per layer, and per key/value head where a policy shrank them.

    `tensors` are "keys.L", "values.L" [tokens, heads, head_dim] of a whole cache, or "keys.L.H",
    "values.L.H" [entries, head_dim] and "positions.L.H" [entries] of a shrunken one, unrotated
    if the policy says so, and "memory.NAME" of what the policy remembers. `policy` is empty for a
    whole one. `model` and `adapters` are digests: entries of other weights are noise.
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
                raise ValueError(f"format {facts['format']!r}")
            adapters = json.loads(facts["adapters"])
            if not isinstance(adapters, list) or not all(isinstance(one, str) for one in adapters):
                raise ValueError("adapters are not a list of digests")
            tensors = load(data)
            ids = tensors.pop("token_ids")
            if ids.dtype != torch.int64 or ids.dim() != 1 or not len(ids):
                raise ValueError("token_ids are not a list of integers")
            return cls(
                facts["model"], tuple(adapters), facts["policy"], tuple(ids.tolist()), tensors
            )
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            size = f"{len(data)} bytes" if isinstance(data, bytes) else repr(data)[:40]
            raise InferenceInputError(
                f"{size} are no key/value entries of this engine ({error}); "
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
            tensors[f"keys.{layer}"] = _copied(keys)
            tensors[f"values.{layer}"] = _copied(values)
        return cls(model, digests(row), "", tuple(row.ids[: row.cached]), tensors)

    @classmethod
    def of_cache(cls, model: str, row: Row, cache: Compact) -> Snapshot:
        """Copy the entries of a row that has a cache of its own, which is whole if nothing left."""
        whole = type(cache.policy) is Full
        tensors = {f"memory.{name}": _copied(held) for name, held in cache.memory.items()}
        for layer, heads in enumerate(cache.heads):
            if whole:
                tensors[f"keys.{layer}"] = torch.stack([_copied(one.keys) for one in heads], 1)
                tensors[f"values.{layer}"] = torch.stack([_copied(one.values) for one in heads], 1)
                continue
            for at, head in enumerate(heads):
                for part, held in zip(PARTS, (head.keys, head.values, head.positions), strict=True):
                    tensors[f"{part}.{layer}.{at}"] = _copied(held)
        policy = "" if whole else spell(cache.policy)
        return cls(model, digests(row), policy, tuple(row.ids[: row.cached]), tensors)

    def revive(self, cache: Compact, device: torch.device) -> None:
        """Put these entries, which were checked, into an empty cache."""
        for name, held in self.tensors.items():
            if name.startswith("memory."):
                cache.memory[name.removeprefix("memory.")] = held.to(device, copy=True)
        for layer, heads in enumerate(cache.heads):
            for at, head in enumerate(heads):
                head.replace(*(held.to(device, copy=True) for held in self._head(layer, at)))
            cache.weigh(layer)

    def check(self, store: Store, vocabulary: int, context: int) -> None:
        """Raise InferenceInputError unless every tensor is one of a model with such a store."""
        tokens = len(self.token_ids)
        if tokens > context or not all(0 <= one < vocabulary for one in self.token_ids):
            raise _unfit(
                f"{tokens} token ids up to {max(self.token_ids)}, where the model has a context of "
                f"{context} and a vocabulary of {vocabulary}"
            )
        expected: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {}
        for layer, like in store.keys.items():
            count, width = like.shape[1:]
            if not self.shrunken:
                for part in PARTS[:2]:
                    expected[f"{part}.{layer}"] = like.dtype, (tokens, count, width)
                continue
            for at in range(count):
                expected[f"keys.{layer}.{at}"] = like.dtype, (None, width)
                expected[f"values.{layer}.{at}"] = like.dtype, (None, width)
                expected[f"positions.{layer}.{at}"] = torch.int64, (None,)
        found = {
            name for name in self.tensors if not (self.shrunken and name.startswith("memory."))
        }
        if found != set(expected):
            odd = min(found.symmetric_difference(expected))
            raise _unfit(f"{'a tensor' if odd in found else 'no tensor'} {odd!r}")
        for name, (dtype, shape) in expected.items():
            self._check_tensor(name, dtype, shape)

    def entries(self) -> int:
        """The most entries that one head holds."""
        if not self.shrunken:
            return len(self.token_ids)
        return max(len(held) for name, held in self.tensors.items() if name.startswith("keys."))

    def _check_tensor(self, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
        held = self.tensors[name]
        part, _, rest = name.partition(".")
        # Of a shrunken head keys say how many entries there are, and the others follow.
        length = len(self.tensors[f"keys.{rest}"]) if held.dim() else None
        wanted = tuple(length if size is None else size for size in shape)
        if held.dtype != dtype or tuple(held.shape) != wanted:
            raise _unfit(
                f"{name!r} of {held.dtype} {list(held.shape)} in place of {dtype} {list(wanted)}"
            )
        if part == "positions":
            if len(held) and not 0 <= int(held.min()) <= int(held.max()) < len(self.token_ids):
                raise _unfit(f"{name!r} with positions beyond its {len(self.token_ids)} tokens")
        elif not bool(torch.isfinite(held).all()):
            raise _unfit(f"{name!r} with numbers that are not finite")

    def _head(self, layer: int, at: int) -> tuple[torch.Tensor, ...]:
        if self.shrunken:
            return tuple(self.tensors[f"{part}.{layer}.{at}"] for part in PARTS)
        keys, values = (self.tensors[f"{part}.{layer}"][:, at] for part in PARTS[:2])
        return keys, values, torch.arange(len(keys))


def digests(row: Row) -> tuple[str, ...]:
    """The digests of the adapters a row carries."""
    return tuple(adapter.digest for adapter in row.adapters)


def check_past(past: Snapshot, model: str, row: Row, policy: KVPolicy, most: int) -> None:
    """Raise InferenceInputError unless a row may go on from a checked snapshot.

    `most` are the entries a head may hold under `policy`.
    """
    asked = "" if type(policy) is Full else spell(policy)
    held = tuple(row.ids[: len(past.token_ids)])
    problems = {
        "was computed by another model, or with another dtype": past.model != model,
        "was computed with other adapters": past.adapters != digests(row),
        f"was shrunk by {past.policy or 'no policy'}, and the request asks for "
        f"{asked or 'no policy'}": past.policy != asked,
        "holds tokens that are not the beginning of the prompt": held != past.token_ids,
        "holds the whole prompt, and at least one token must follow it": (
            len(row.ids) <= len(past.token_ids)
        ),
        f"holds {past.entries()} entries in a head, and the policy allows {most}": (
            past.entries() > most
        ),
    }
    for problem, found in problems.items():
        if found:
            raise InferenceInputError(f"the past of the request {problem}; export it again for it")


def _copied(held: torch.Tensor) -> torch.Tensor:
    return held.clone().contiguous().cpu()


def _unfit(what: str) -> InferenceInputError:
    return InferenceInputError(
        f"these key/value entries do not fit the model: they hold {what}; export them again"
    )
