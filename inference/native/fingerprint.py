"""What tells one model from another of the same shape: digests of configuration and weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from inference.native.checkpoint import Checkpoint

VOLATILE = ("transformers_version", "dtype", "torch_dtype")
"""Keys of a configuration that say nothing about the shape of the model."""

SAMPLED = 4096
"""Numbers of each tensor that are read: a whole checkpoint would take long."""


def architecture(config: Any) -> str:
    """Digest of a configuration."""
    facts = config.to_dict()
    shape = {k: v for k, v in facts.items() if k not in VOLATILE and not k.startswith("_")}
    text = json.dumps(shape, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fingerprint(folder: Path, name: str, config: Any, dtype: torch.dtype) -> str:
    """Digest of configuration, number type and evenly spaced numbers of every tensor."""
    state = hashlib.sha256(f"{architecture(config)} {dtype}".encode())
    with Checkpoint(folder, name) as found:
        for tensor in sorted(found):
            held = found.read(tensor)
            sample = held.flatten()[:: max(1, held.numel() // SAMPLED)].float().contiguous()
            state.update(f"{tensor} {list(held.shape)}".encode())
            state.update(sample.numpy().tobytes())
    return state.hexdigest()
