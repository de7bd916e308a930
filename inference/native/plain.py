"""A transformers model as it is: the way for architectures without a forward pass of our own.

The model computes everything but attention, which transformers' attention interface hands to
this engine under a name that only this model's configuration asks for.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from inference.errors import InferenceError, InferenceInputError
from inference.native.attention import Heads, attend
from inference.native.step import Step

NAME = "ragwright_ragged"
"""The name under which transformers finds `interface`."""

REFUSED = ("softcap", "s_aux", "position_bias", "head_mask")
"""Arguments some models pass that this attention does not implement."""

FAMILIES = "choose a model of the Llama, Qwen2, Qwen3, Mistral or SmolLM family"


class Plain:
    """Any causal language model of transformers with full or sliding attention."""

    def __init__(self, network: Any, name: str) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, interface)
        network.set_attn_implementation(NAME)
        self.network = network.eval()
        self._name = name
        self._keeps = "logits_to_keep" in inspect.signature(network.forward).parameters
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.dtype
        self.vocabulary = int(network.get_input_embeddings().weight.shape[0])
        self.width = int(network.get_output_embeddings().weight.shape[0])

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, tied ones once."""
        return sum(one.numel() * one.element_size() for one in self.network.parameters())

    def forward(self, step: Step) -> torch.Tensor | None:
        """Float32 logits [kept, vocabulary] of the rows a step keeps, or None."""
        options = {"logits_to_keep": step.kept} if self._keeps else {}
        output = self.network(
            input_ids=step.ids[None],
            position_ids=step.positions[None],
            use_cache=False,
            ragged=step,
            **options,
        )
        if not len(step.kept):
            return None
        logits: torch.Tensor = output.logits[0] if self._keeps else output.logits[0, step.kept]
        return logits.float()

    def check(self, layers_seen: int, layers: int) -> None:
        """Raise unless a first step came through the attention of every layer."""
        if layers_seen != layers:
            raise InferenceError(
                f"model {self._name!r} sends {layers_seen} of its {layers} layers "
                f"through transformers' attention interface, and the native engine needs all; "
                f"{FAMILIES}"
            )


def interface(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    *,
    ragged: Step,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Output [1, rows, heads, head_dim] for query [1, heads, rows, head_dim], and its like."""
    for name in REFUSED:
        if options.get(name) is not None:
            raise InferenceInputError(
                f"{type(module).__name__} needs attention with {name}, which the native engine "
                f"does not have; {FAMILIES}"
            )
    heads = Heads(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    return attend(ragged, module.layer_idx, heads, scaling, sliding_window)[None], None
