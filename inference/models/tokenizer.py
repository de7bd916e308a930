"""A tokenizer without its model, for code that counts or cuts text by tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.errors import InferenceInputError
from inference.models.store import resolve

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """The fast tokenizer of a model, without truncation or padding; torch is not imported.

    `encode(text, add_special_tokens=False).offsets` gives character offsets into the text.
    """
    from tokenizers import Tokenizer

    path = resolve(name) / "tokenizer.json"
    if not path.is_file():
        raise InferenceInputError(
            f"model {name!r} has no fast tokenizer ({path} is missing); "
            "convert it with transformers' save_pretrained or choose another model"
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
