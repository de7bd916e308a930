"""Tiny seeded checkpoints on disk: real models and a real byte-level tokenizer, no download."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from inference.models import resolve

CORPUS = [
    "The quick brown fox jumps over the lazy dog while the river runs north.",
    "A model reads tokens, keeps keys and values, and writes what comes next.",
    "Größe, naïve café, 東京 and 🙂 stand for characters of more than one byte.",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
POISON = 310
"""A token that no text of the tests holds."""
CONFIGS: dict[str, type[Any]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "mistral": MistralConfig,
    "qwen3": Qwen3Config,
}


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens, trained here."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    fast.chat_template = template
    return fast


def checkpoint(
    folder: Path,
    kind: str = "llama",
    *,
    seed: int = 0,
    context: int = 256,
    template: str | None = TEMPLATE,
    endless: bool = False,
    ascii_only: bool = False,
    poison: float | None = None,
    **options: Any,
) -> Path:
    """Save a tiny model in `folder`.

    `endless` keeps it from choosing the end token, `ascii_only` from tokens that are not ASCII.
    `poison` is what token POISON turns the numbers of the model into, as a damaged file would.
    """
    words = tokenizer(template)
    config = CONFIGS[kind](
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.4,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        pad_token_id=words.eos_token_id,
        tie_word_embeddings=False,
        **options,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    silent = [words.eos_token_id] if endless else []
    if ascii_only:
        silent += [i for i in range(len(words)) if not words.decode([i]).isascii()]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0  # a logit of 0 is far below the largest
        if poison is not None:
            model.get_input_embeddings().weight[POISON] = poison
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@lru_cache(maxsize=8)
def network(name: str) -> Any:
    """The model as transformers alone runs it, float32, to compare with."""
    return AutoModelForCausalLM.from_pretrained(resolve(name), dtype=torch.float32).eval()
