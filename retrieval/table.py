"""The table of retrievers: a name in a workflow file or on the command line -> its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from retrieval.errors import RetrievalInputError, unknown_name
from retrieval.retriever import Retriever, RetrieverConfig


class DenseConfig(RetrieverConfig):
    """Cosine of MiniLM vectors, exact, by FAISS."""

    def open(self, index: Path) -> Retriever:
        """Open over a built index folder; checks the manifest first."""
        from retrieval.dense import DenseRetriever

        return DenseRetriever.open(index)


class Bm25Config(RetrieverConfig):
    """Shared words, by bm25s."""

    def open(self, index: Path) -> Retriever:
        """Open over a built index folder; checks the manifest first."""
        from retrieval.bm25 import Bm25Retriever

        return Bm25Retriever.open(index)


class HybridConfig(RetrieverConfig):
    """Reciprocal rank fusion: `rrf` is the constant, `depth` the ranks taken from each part."""

    rrf: float = Field(default=60.0, gt=0)
    depth: int = Field(default=100, ge=1)

    def open(self, index: Path) -> Retriever:
        """Open over a built index folder; checks the manifest first."""
        from retrieval.hybrid import HybridRetriever

        return HybridRetriever.open(index, self.rrf, self.depth)


RETRIEVERS: dict[str, type[RetrieverConfig]] = {
    "hybrid": HybridConfig,
    "dense": DenseConfig,
    "bm25": Bm25Config,
}


def retriever_config(name: str, options: Mapping[str, Any] | None = None) -> RetrieverConfig:
    """Options of the retriever `name`; unknown names and bad options name the remedy."""
    if name not in RETRIEVERS:
        raise unknown_name("retriever", name, RETRIEVERS)
    try:
        return RETRIEVERS[name](**(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        known = ", ".join(RETRIEVERS[name].model_fields)
        raise RetrievalInputError(
            f"retriever {name}, option {option!r}: {first['msg']}; its options are {known}"
        ) from None
