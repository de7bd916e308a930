"""A transformers causal language model, ready for one forward pass at a time."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from inference.errors import InferenceError, InferenceInputError
from inference.terminal import bars_only_on_terminal

PLAIN_LAYERS = {"full_attention", "sliding_attention"}
MOVING_ROPE = {"dynamic", "longrope"}
FAMILIES = "choose a model of the Llama, Qwen2, Qwen3, Mistral or SmolLM family"


class Model:
    """Weights, tokenizer and the facts about them that decoding needs."""

    def __init__(self, network: Any, tokenizer: Any, name: str) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.config = network.config.get_text_config()
        self.device: torch.device = network.device
        self.context_length = _context_length(self.config, name)
        self.vocabulary = int(network.get_input_embeddings().weight.shape[0])
        self.width = int(network.get_output_embeddings().weight.shape[0])  # of the logits
        self.stop_ids = _stop_ids(network, tokenizer)
        _refuse_unsupported(self.config, name)
        self._keeps = "logits_to_keep" in inspect.signature(network.forward).parameters

    @classmethod
    def load(cls, folder: Path, name: str, dtype: str, device: str) -> Model:
        """Load safetensors from `folder`; 'auto' takes CUDA and bfloat16 where there is CUDA."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if device == "cuda" and not torch.cuda.is_available():
            raise InferenceInputError(
                "device 'cuda' was asked for and torch sees no CUDA device; use 'cpu' or 'auto'"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else "float32"
        try:
            with bars_only_on_terminal():
                network, report = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=getattr(torch, dtype),
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InferenceError(
                f"model {name!r} in {folder} cannot be loaded: {reason}; "
                "fetch or convert the checkpoint again"
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise InferenceError(
                f"model {name!r} in {folder} lacks {len(missing)} of its tensors, the first "
                f"{missing[0]!r}; fetch or convert the checkpoint again"
            )
        return cls(network.to(device), tokenizer, name)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        kept: torch.Tensor,
        **context: object,
    ) -> torch.Tensor | None:
        """Float32 logits [len(kept), vocabulary] of rows `kept` of `ids` [1, tokens].

        `context` reaches every attention layer. None where no row is kept.
        """
        options = {"logits_to_keep": kept} if self._keeps else {}
        try:
            output = self.network(
                input_ids=ids, position_ids=positions, use_cache=False, **options, **context
            )
        except torch.OutOfMemoryError as error:
            raise InferenceError(
                f"{self.device} has too little memory for model {self.name!r} at this length; "
                "use a shorter prompt, dtype bfloat16, or smaller kv_cache_bytes or step_tokens"
            ) from error
        if not len(kept):
            return None
        logits: torch.Tensor = output.logits[0] if self._keeps else output.logits[0, kept]
        return logits.float()

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens."""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _context_length(config: Any, name: str) -> int:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise InferenceInputError(
            f"model {name!r} does not state its context length; "
            "add max_position_embeddings to its config.json"
        )
    return length


def _stop_ids(network: Any, tokenizer: Any) -> frozenset[int]:
    stated = getattr(network.generation_config, "eos_token_id", None)
    if stated is None:
        stated = tokenizer.eos_token_id
    if stated is None:
        return frozenset()
    return frozenset(stated if isinstance(stated, list) else [stated])


def _refuse_unsupported(config: Any, name: str) -> None:
    """Raise for what a batch of independent sequences cannot be right with."""
    others = set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS
    if others:
        raise InferenceInputError(
            f"model {name!r} has layers of type {sorted(others)}; the native engine runs full and "
            f"sliding attention only; {FAMILIES}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(rope.get("rope_type"))} & MOVING_ROPE
    if kinds:
        # Their frequencies follow the longest sequence of a forward, so neighbours would matter.
        raise InferenceInputError(
            f"model {name!r} scales its positions by {sorted(kinds)[0]!r}, which would let the "
            f"requests of a batch change each other; {FAMILIES}"
        )
