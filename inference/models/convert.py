"""GGUF to safetensors, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.terminal import bars_only_on_terminal


def convert_gguf(source: Path, out: Path) -> None:
    """Dequantise `source` to float32 and save model, tokenizer and chat template in `out`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Releases that know GgufConfig keep the weights quantised unless told; earlier ones never do.
    quantised = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": quantised(dequantize=True)} if quantised else {}
    with bars_only_on_terminal():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.float32,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        _restore_digits(source, tokenizer)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def _restore_digits(source: Path, tokenizer: Any) -> None:
    """Put back the pre-tokenizer that GGUF only names: SmolLM splits numbers into digits.

    Without it runs of spaces before a number are cut differently from the model's training.
    """
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits
    from tokenizers.pre_tokenizers import Sequence as Steps

    field = GGUFReader(source).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Steps(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
