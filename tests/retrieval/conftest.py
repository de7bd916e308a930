"""A small corpus of real sentences, its index by the real embedder, and the embedder."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.documents import Document
from retrieval.embedding import Embedder, default_embedder
from retrieval.index import build_index

FACTS = {
    "curie": ("Marie Curie", "Marie Curie discovered polonium and radium in Paris.", "chemistry"),
    "pierre": ("Pierre Curie", "Pierre Curie studied crystals and magnetism.", "physics"),
    "darwin": ("Charles Darwin", "Darwin sailed on the Beagle and studied finches.", "biology"),
    "mendel": ("Gregor Mendel", "Mendel crossed peas in the garden of his abbey.", "biology"),
    "lovelace": ("Ada Lovelace", "Lovelace wrote notes on the analytical engine.", "computing"),
    "turing": ("Alan Turing", "Turing described a universal machine.", "computing"),
    "noether": ("Emmy Noether", "Noether linked symmetries to conserved quantities.", "physics"),
    "hopper": ("Grace Hopper", "Hopper wrote a compiler and found a moth.", "computing"),
    "copy": ("Alan Turing", "Turing described a universal machine.", "computing"),
    "german": ("Otto Hahn", "Otto Hahn entdeckte die Kernspaltung.", "chemistry"),
}
"""id -> title, text, field; `copy` repeats `turing` so that ties exist."""

LONG = "\n\n".join(
    f"Chapter {n}. The ship left harbour number {n} in the morning. " * 12 for n in range(3)
)


def documents() -> list[Document]:
    """The corpus; `saga` is long enough for several passages."""
    short = [
        Document(id=key, title=title, source="facts.jsonl", text=text, metadata={"field": field})
        for key, (title, text, field) in FACTS.items()
    ]
    return [*short, Document(id="saga", title="Sea saga", source="saga.txt", text=LONG)]


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The installed MiniLM."""
    return default_embedder()


@pytest.fixture(scope="session")
def index_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of `documents()`."""
    out = tmp_path_factory.mktemp("indexes") / "facts"
    build_index(documents(), out)
    return out
