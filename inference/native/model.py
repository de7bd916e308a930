"""A transformers causal language model, ready for one forward pass at a time."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from inference.errors import InferenceError, InferenceInputError
from inference.native.prefix import Layers
from inference.terminal import bars_only_on_terminal

PLAIN_LAYERS = {"full_attention", "sliding_attention"}


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
        # Full attention entries also serve sliding layers (the mask hides what is too old), and
        # can be cut at any position; recurrent states cannot, so such models reuse nothing.
        self.reusable = PLAIN_LAYERS.issuperset(getattr(self.config, "layer_types", None) or ())
        self._keeps = "logits_to_keep" in inspect.signature(network.forward).parameters
        self._lock = threading.Lock()

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

    def cache(self, layers: Layers = ()) -> Any:
        """A key/value cache that begins with a copy of `layers`."""
        from transformers import DynamicCache

        if not self.reusable:
            return DynamicCache(config=self.config)
        cache = DynamicCache()
        for index, (keys, values) in enumerate(layers):
            cache.update(keys, values, index)
        return cache

    def forward(self, ids: Sequence[int], cache: Any, keep: int = 1) -> torch.Tensor:
        """Float32 logits [keep, vocabulary] of the last `keep` of `ids`, which enter `cache`."""
        with self._lock, torch.inference_mode():
            batch = torch.tensor([list(ids)], device=self.device)
            options = {"logits_to_keep": keep} if self._keeps else {}
            try:
                output = self.network(
                    input_ids=batch, past_key_values=cache, use_cache=True, **options
                )
            except torch.OutOfMemoryError as error:
                raise InferenceError(
                    f"{self.device} has too little memory for model {self.name!r} at this length; "
                    "use a shorter prompt, dtype bfloat16 or a smaller prefix_cache_bytes"
                ) from error
            logits: torch.Tensor = output.logits[0, -keep:].float()
            return logits

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens."""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def entries(cache: Any) -> Layers:
    """The key and value tensors a cache holds now."""
    return tuple(
        (layer.keys, layer.values)
        for layer in cache.layers
        if getattr(layer, "keys", None) is not None
    )


def cache_bytes(cache: Any) -> int:
    """Bytes of every tensor a cache holds, recurrent states included."""
    return sum(
        value.numel() * value.element_size()
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    )


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
