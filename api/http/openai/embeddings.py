"""POST /v1/embeddings: texts as unit vectors of MiniLM, those that indexes are made of."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import Response

from api.http.openai.answering import whole
from api.http.openai.models import EmbeddingBody
from api.http.openai.refusals import refused
from api.http.openai.routing import AskDep, build
from api.http.openai.served import EMBEDDER, Ask, no_model
from api.http.openai.work import in_thread
from retrieval.embedding import default_embedder

if TYPE_CHECKING:
    from retrieval.embedding import Embedder, Vectors

router = build("embeddings")

BATCH = 32
"""Texts between two looks at whether somebody still waits."""


@router.post("/v1/embeddings", response_model=None)
async def create_embedding(body: EmbeddingBody, ask: AskDep) -> Response:
    """A unit vector per text, as numbers or as base64 of little-endian float32."""
    if body.model != EMBEDDER:
        raise no_model(body.model, [EMBEDDER])
    texts = [body.input] if isinstance(body.input, str) else body.input
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            message = f"{EMBEDDER} reads texts, no token ids (their numbers mean another model's)"
            raise refused(f"input.{at}", message)
    if not texts or not all(texts):
        raise refused("input", "an empty text has no vector; leave it out", "invalid_request")
    return whole(partial(_answer, body, texts, ask))


async def _answer(body: EmbeddingBody, texts: Sequence[str], ask: Ask) -> dict[str, Any]:
    embedder = await in_thread(default_embedder)
    if body.dimensions not in (None, embedder.dimensions):
        message = f"{EMBEDDER} has vectors of {embedder.dimensions} numbers; leave it out"
        raise refused("dimensions", message)
    vectors, tokens = [], 0
    async with ask.enter() as visit:
        for at in range(0, len(texts), BATCH):
            found, count = await in_thread(partial(_embed, embedder, texts[at : at + BATCH]))
            vectors += list(found)
            tokens += count
        visit.done = True
    spell = _base64 if body.encoding_format == "base64" else _numbers
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": spell(vector)}
            for at, vector in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _embed(embedder: Embedder, texts: Sequence[str]) -> tuple[Vectors, int]:
    return embedder.embed(texts), sum(map(embedder.count, texts))


def _numbers(vector: Vectors) -> list[float]:
    return [float(number) for number in vector]


def _base64(vector: Vectors) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
