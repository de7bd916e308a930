"""MiniLM vectors against BERT's forward pass written out in numpy."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from retrieval.embedding import Embedder
from retrieval.errors import RetrievalInputError

TEXTS = [
    "Marie Curie discovered polonium.",
    "a",
    "Otto Hahn entdeckte die Kernspaltung, 1938!",
    "word " * 200,
    "",
]


def bert_vector(embedder: Embedder, text: str) -> np.ndarray[Any, Any]:
    """Masked mean of the last layer of one unpadded text, in float64, at unit length."""
    weights = {
        name.removeprefix("bert."): value.astype(np.float64)
        for name, value in load_file(embedder.folder / "model.safetensors").items()
    }
    config = json.loads((embedder.folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(embedder.folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode(text).ids
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def linear(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    e = "embeddings."
    x = weights[e + "word_embeddings.weight"][ids] + weights[e + "token_type_embeddings.weight"][0]
    x = norm(x + weights[e + "position_embeddings.weight"][: len(ids)], e + "LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{layer}."
        q, k, v = (
            linear(x, f"{p}attention.self.{name}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        logits = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        attention = np.exp(logits - logits.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        mixed = (attention @ v).swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(x + linear(mixed, f"{p}attention.output.dense"), f"{p}attention.output.LayerNorm")
        h = linear(x, f"{p}intermediate.dense")
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = norm(x + linear(h, f"{p}output.dense"), f"{p}output.LayerNorm")
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


def test_equals_bert_written_in_numpy_whatever_the_batch(embedder: Embedder) -> None:
    texts = [text for text in TEXTS if len(text) < 100]
    expected = np.stack([bert_vector(embedder, text) for text in texts])
    for batch_size in (1, 2, 32):
        found = embedder.embed(texts, batch_size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_unit_length_and_order(embedder: Embedder) -> None:
    vectors = embedder.embed(TEXTS, 2)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(vectors[row], embedder.embed([text])[0], atol=2e-6)


def test_on_a_processor_a_text_has_one_vector_whatever_stands_beside_it(
    embedder: Embedder,
) -> None:
    if embedder._load().device.type != "cpu":
        pytest.skip("on a GPU texts are embedded together, and products depend on how many")
    vectors = embedder.embed(TEXTS)
    for row, text in enumerate(TEXTS):
        assert np.array_equal(vectors[row], embedder.embed([text])[0])
        assert np.array_equal(vectors[row], embedder.embed([text, "Another.", text])[2])


def test_too_long_a_text_is_refused_not_cut(embedder: Embedder) -> None:
    embedder.embed(["word " * (embedder.limit - 2)])
    with pytest.raises(RetrievalInputError, match="513 tokens and the embedder minilm reads 512"):
        embedder.embed(["fine", "word " * (embedder.limit - 1)])


def test_no_texts_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.dimensions)
