"""What is different about indexes and graphs: formats, building, counting, opening."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from api.library import upload
from retrieval.retriever import Retriever

Tell = Callable[[str, int, int | None], None]
"""Hears a stage, units done, units in all; may raise to stop the build."""


class Kind(Protocol):
    """One kind of thing that is built from uploads and searched."""

    name: str

    def formats(self) -> Sequence[str]:
        """Suffixes of the files it is made of."""
        ...

    def build(self, parsed: Path, out: Path, *, extend: bool, tell: Tell) -> None:
        """Make or extend what lies at `out` by an upload that was read."""
        ...

    def counts(self, folder: Path) -> dict[str, int]:
        """What a version holds."""
        ...

    def open(self, folder: Path, retriever: str | None, options: Mapping[str, Any]) -> Retriever:
        """A retriever over a version."""
        ...


class Indexes:
    """Documents to passages to ranked hits."""

    name = "index"

    def formats(self) -> Sequence[str]:
        """The document formats."""
        from retrieval.loaders import LOADERS

        return tuple(LOADERS)

    def build(self, parsed: Path, out: Path, *, extend: bool, tell: Tell) -> None:
        """Embed what is new or changed."""
        from retrieval.documents import Document
        from retrieval.index import add_documents, build_index

        def documents() -> Iterator[Document]:
            for identifier, title, source, text, metadata in upload.rows(parsed):
                yield Document(identifier, title, source, text, metadata)

        if extend:
            add_documents(out, documents(), progress=tell)
        else:
            build_index(documents(), out, progress=tell)

    def counts(self, folder: Path) -> dict[str, int]:
        """Documents and passages."""
        from retrieval.manifest import read_manifest

        manifest = read_manifest(folder)
        return {"documents": manifest.documents, "passages": manifest.passages}

    def open(self, folder: Path, retriever: str | None, options: Mapping[str, Any]) -> Retriever:
        """One of the table of retrievers."""
        from retrieval.table import retriever_config

        return retriever_config(retriever or "hybrid", options).open(folder)


class Graphs:
    """Facts about entities."""

    name = "graph"

    def formats(self) -> Sequence[str]:
        """Triples, RDF, GraphML."""
        from graphs.loaders import LOADERS

        return tuple(LOADERS)

    def build(self, parsed: Path, out: Path, *, extend: bool, tell: Tell) -> None:
        """Add the facts and names."""
        from graphs.build import add_facts, build_graph
        from graphs.facts import Fact
        from graphs.loaders import Loaded
        from graphs.loaders.reading import Name

        loaded = Loaded()
        for row in upload.rows(parsed):
            if len(row) == 2:
                loaded.call(Name(*row))
            else:
                loaded.facts.append(Fact(*row))
        tell("read", len(loaded.facts), len(loaded.facts))
        if extend:
            add_facts(out, loaded)
        else:
            build_graph(loaded, out)

    def counts(self, folder: Path) -> dict[str, int]:
        """Triples, entities and relations."""
        from graphs.manifest import read_manifest

        manifest = read_manifest(folder)
        return {
            "triples": manifest.triples,
            "entities": manifest.entities,
            "relations": len(manifest.relations),
        }

    def open(self, folder: Path, retriever: str | None, options: Mapping[str, Any]) -> Retriever:
        """Graph search with its options."""
        from graphs.table import GraphConfig

        return GraphConfig(**options).open(folder)
