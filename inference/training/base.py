"""The model that training starts from; its weights are read and never written."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from inference.errors import InferenceError
from inference.models import resolve
from inference.models.manifest import sha256
from inference.terminal import bars_only_on_terminal


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint of the model store, unpacked, with the digest of each of its weight files."""

    name: str
    network: Any
    tokenizer: Any
    files: dict[str, str]


def open_base(
    name: str, dtype: Literal["float32", "bfloat16", "float64"] = "float32", device: str = "cpu"
) -> Base:
    """Load the model `name` for training; in bfloat16 what is trained stays float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(name)
    try:
        with bars_only_on_terminal():
            network = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InferenceError(
            f"model {name!r} in {folder} cannot be loaded: {reason}; "
            "fetch or convert the checkpoint again"
        ) from error
    files = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    return Base(name, network.to(device).eval().requires_grad_(False), tokenizer, files)


def twin(network: Any) -> Any:
    """A second network over the same weights in memory, none of which takes gradients.

    Modules, hooks and configuration are its own, so that what is done to it does not show in the
    first; its attention is torch's, which gradients flow through.
    """
    shared: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        shared[id(parameter)] = torch.nn.Parameter(parameter.detach(), requires_grad=False)
    other = copy.deepcopy(network, shared)
    other.set_attn_implementation("sdpa")
    return other.eval()
