"""MiniLM sentence vectors: masked mean over the last hidden layer, then unit length.

Source: sentence-transformers/all-MiniLM-L6-v2 (256-token window, 384 dimensions).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from retrieval.errors import RetrievalInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

Vectors = npt.NDArray[np.float32]
"""Rows of unit length, shape (n, dimensions)."""

SPECIAL = 2
"""Tokens that frame every text: [CLS] and [SEP]."""
GPU_BATCH = 32
"""Texts that are embedded together on a GPU."""
IDENTITY = ("config.json", "tokenizer.json", "model.safetensors")
"""The files whose content decides what a vector is."""


class Embedder:
    """Texts to vectors; the tokenizer loads at once, the model at the first embedding.

    Safe to call from several threads. `window` is the number of tokens the model was trained
    on, `limit` the number of positions it has; a text beyond `limit` is refused, never cut.
    """

    def __init__(self, folder: Path, name: str = "minilm") -> None:
        self.name = name
        self.folder = folder
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.dimensions: int = config["hidden_size"]
        self.limit: int = config["max_position_embeddings"]
        self.window = min(256, self.limit)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pad = config.get("pad_token_id", 0)
        self._model: Any = None
        self._loading = Lock()
        self._sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Identity of the model: hash over the hashes of its configuration, tokens, weights."""
        if self._sha256 is None:
            whole = hashlib.sha256()
            for name in IDENTITY:
                with (self.folder / name).open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
            self._sha256 = whole.hexdigest()
        return self._sha256

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character span of every token of `text`, without the special tokens."""
        spans: list[tuple[int, int]] = self._tokenizer.encode(
            text, add_special_tokens=False
        ).offsets
        return spans

    def count(self, text: str) -> int:
        """Tokens that `text` takes in the window, with the special tokens."""
        return len(self._tokenizer.encode(text).ids)

    def embed(self, texts: Sequence[str], batch_size: int | None = None) -> Vectors:
        """Unit vectors of `texts`, float32, shape (len(texts), dimensions), in their order.

        Left out, `batch_size` is 1 on a processor: products over more rows may add up in another
        order, and a text shall have one vector, whatever stands beside it. That costs nothing
        there, since nothing is padded.
        """
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        for text, tokens in zip(texts, ids, strict=True):
            if len(tokens) > self.limit:
                raise RetrievalInputError(
                    f"the text {text[:60]!r}... has {len(tokens)} tokens and the embedder "
                    f"{self.name} reads {self.limit}; shorten it"
                )
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        if batch_size is None:
            batch_size = 1 if self._load().device.type == "cpu" else GPU_BATCH
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for low in range(0, len(order), batch_size):
            rows = order[low : low + batch_size]
            vectors[rows] = self._forward([ids[row] for row in rows])
        return vectors

    def _forward(self, ids: list[list[int]]) -> Vectors:
        import torch

        model = self._load()
        width = max(map(len, ids))
        padded = [row + [self._pad] * (width - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
        with torch.inference_mode():
            tokens = torch.tensor(padded, device=model.device)
            weights = torch.tensor(mask, device=model.device)
            hidden = model(input_ids=tokens, attention_mask=weights).last_hidden_state
            summed = (hidden * weights.unsqueeze(-1)).sum(1)
            mean = summed / weights.sum(1, keepdim=True)
            vectors: Vectors = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return vectors

    def _load(self) -> Any:
        with self._loading:
            if self._model is None:
                import torch
                from transformers import AutoModel

                with _quiet():
                    model = AutoModel.from_pretrained(
                        self.folder,
                        dtype=torch.float32,
                        use_safetensors=True,
                        local_files_only=True,
                        add_pooling_layer=False,
                    )
                self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        return self._model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own progress bar off standard error."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


_shared: dict[Path, Embedder] = {}
_sharing = Lock()


def default_embedder() -> Embedder:
    """The embedder of this installation, one per process; fetches its model if needed."""
    from inference.models import resolve

    folder = Path(resolve("minilm"))
    with _sharing:
        if folder not in _shared:
            _shared[folder] = Embedder(folder)
        return _shared[folder]
