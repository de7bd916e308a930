"""A retriever over a few sentences that counts shared words: what an agent may be handed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from retrieval import Hit, Passage

FACTS = {
    "bridge": "The Harrow Bridge was designed by Ruben Sorley.",
    "sorley": "Ruben Sorley was born in Lindemoor.",
    "ferry": "The ferry of Port Halden stopped in 1925.",
}


class Words:
    """Ranks `FACTS` by the number of words they share with the query."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        exclude: Collection[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        self.queries += queries
        return [self._best(query, k, exclude) for query in queries]

    @staticmethod
    def _best(query: str, k: int, exclude: Collection[str]) -> list[Hit]:
        asked = set(query.lower().split())
        hits = [
            Hit(
                Passage(f"{name}#0", name, name.title(), f"{name}.txt", 0, len(text), text),
                float(len(asked & set(text.lower().split()))),
            )
            for name, text in FACTS.items()
            if f"{name}#0" not in exclude
        ]
        return sorted(hits, key=lambda hit: -hit.score)[:k]
