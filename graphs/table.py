"""The table of retrievers over graphs: a name in a workflow file -> its options."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from retrieval.retriever import Retriever, RetrieverConfig


class GraphConfig(RetrieverConfig):
    """Facts around the entities that a query mentions.

    `hops` is how far around an entity facts are taken, `links` how many entities of a query, and
    `words` the weight of the words that query and fact share beside their nearness of at most 1.
    """

    hops: int = Field(default=2, ge=1, le=4)
    links: int = Field(default=5, ge=1, le=50)
    words: float = Field(default=0.5, ge=0, le=10, allow_inf_nan=False)

    def open(self, index: Path) -> Retriever:
        """Open over a graph folder; checks the manifest first."""
        from graphs.retriever import GraphRetriever

        return GraphRetriever.open(index, hops=self.hops, links=self.links, words=self.words)


GRAPH_RETRIEVERS: dict[str, type[RetrieverConfig]] = {"graph": GraphConfig}
