"""What a run cost, node by node, from its steps; the sums are those of the engine's own count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SUMMED = ("forwards", "drafted", "accepted", "resumed_tokens", "kv_bytes")
"""Counts of `inference.Stats` that add up; `kv_bytes` adds the peaks of the generations."""

_USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens", "model_calls", "retrievals")


def costs_of(stats: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The costs of several generations, each an `inference.Stats` as a mapping, as one.

    `peak_kv_bytes` is the largest of theirs; `idealized_seconds` is None where none has any.
    """
    return _sum({**one, "kv_bytes": one.get("peak_kv_bytes", 0)} for one in stats)


def ledger_of(steps: Iterable[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Costs by node and of the whole run, superseded steps included.

    `model_seconds` is time in the engine. `seconds` of a node is wall time of its steps, which in
    parallel may exceed that of the run; `seconds` of the run is given.
    """
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    every = list(steps)
    for step in every:
        nodes.setdefault(step["node"], []).append(step)
    return {
        "nodes": {
            name: {**_entry(own), "seconds": sum(step["seconds"] for step in own)}
            for name, own in nodes.items()
        },
        "run": {**_entry(every), "seconds": seconds},
    }


def _entry(steps: list[Mapping[str, Any]]) -> dict[str, Any]:
    usage = {name: sum(step["usage"][name] for step in steps) for name in _USAGE}
    model_seconds = sum(step["usage"]["seconds"] for step in steps)
    stats = _sum(step.get("stats", {}) for step in steps)
    return {"steps": len(steps), **usage, **stats, "model_seconds": model_seconds}


def _sum(stats: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    every = list(stats)
    known = [s for one in every if (s := one.get("idealized_seconds")) is not None]
    return {
        **{name: sum(one.get(name, 0) for one in every) for name in SUMMED},
        "peak_kv_bytes": max((one.get("peak_kv_bytes", 0) for one in every), default=0),
        "idealized_seconds": sum(known) if known else None,
    }
