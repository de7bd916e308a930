"""Web pages: the main text, without navigation and other boilerplate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retrieval.documents import Document
from retrieval.errors import RetrievalInputError
from retrieval.loaders.text import read_utf8


def load_html(file: Path, name: str) -> Iterator[Document]:
    """One document; offsets refer to the extracted text, not to the markup."""
    import trafilatura

    page = read_utf8(file)
    tree = trafilatura.load_html(page)
    text = (
        trafilatura.extract(tree, favor_recall=True, include_comments=False)
        if (tree is not None)
        else None
    )
    if not text:
        raise RetrievalInputError(
            f"{file}: no readable text in the page; save it as .txt or remove it"
        )
    metadata = trafilatura.extract_metadata(page)
    title = metadata.title if metadata is not None and metadata.title else file.stem
    yield Document(id=name, title=title, source=str(file), text=text)
