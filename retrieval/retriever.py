"""The retriever contract, its data, and the table of retrievers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, slots=True)
class Passage:
    """A span of a document; `text == source_text[start:end]` in characters of the source text.

    `document_id` is the `id` of a .jsonl row or the path of a file relative to the docs root;
    `id` is `document_id#n`. `source` is the path of the file as it was given.
    """

    id: str
    document_id: str
    title: str
    source: str
    start: int
    end: int
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A ranked passage; `ranks` says where each part of a fused retriever placed it (from 1)."""

    passage: Passage
    score: float
    ranks: Mapping[str, int] = field(default_factory=dict)

    def citation(self) -> dict[str, Any]:
        """The object a run prints: id, title, source, start, end, text, score."""
        p = self.passage
        return {
            "id": p.id,
            "document_id": p.document_id,
            "title": p.title,
            "source": p.source,
            "start": p.start,
            "end": p.end,
            "text": p.text,
            "score": self.score,
        }

    def to_dict(self) -> dict[str, Any]:
        """The object that a search prints: the citation's fields, metadata and ranks."""
        cited = self.citation()
        return {
            "document_id": cited.pop("document_id"),
            "passage_id": cited.pop("id"),
            **cited,
            "metadata": dict(self.passage.metadata),
            "ranks": dict(self.ranks),
        }


@runtime_checkable
class Retriever(Protocol):
    """Ranks passages for queries; safe to call from several threads."""

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        exclude: Collection[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Best `k` hits per query, best first.

        `exclude` holds passage ids never to be returned; `where` keeps passages whose metadata
        equals each given value (a list means any of its members).
        """
        ...


class RetrieverConfig(BaseModel):
    """Options of one retriever as they stand in a workflow file.

    `k` is the number of hits where the caller names none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=5, ge=1)

    def open(self, index: Path) -> Retriever:
        """Open the retriever over a built index folder; checks the manifest first."""
        raise TypeError(f"{type(self).__name__} does not say how to open its retriever")
