"""One loader per format: a file to documents, or to the faults that keep it from being read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from retrieval.documents import Document
from retrieval.errors import RetrievalInputError
from retrieval.loaders.html import load_html
from retrieval.loaders.jsonl import load_jsonl
from retrieval.loaders.markdown import load_markdown
from retrieval.loaders.pdf import load_pdf
from retrieval.loaders.text import load_text

Loader = Callable[[Path, str], Iterator[Document | RetrievalInputError]]
"""(file, name relative to the docs root) -> documents and faults, in the order of the file."""

LOADERS: dict[str, Loader] = {
    ".txt": load_text,
    ".md": load_markdown,
    ".html": load_html,
    ".htm": load_html,
    ".pdf": load_pdf,
    ".jsonl": load_jsonl,
}


def formats() -> str:
    """The supported extensions, for messages."""
    return " ".join(LOADERS)


def read(file: Path, name: str) -> Iterator[Document | RetrievalInputError]:
    """Documents and faults of one file; a fault is yielded, never raised."""
    if not file.is_file():
        yield RetrievalInputError(f"{file}: not a regular file; replace it by a plain copy")
        return
    try:
        for item in LOADERS[file.suffix.lower()](file, name):
            if isinstance(item, Document) and not item.text.strip():
                yield RetrievalInputError(
                    f"{file}: holds no text; remove the file or put text into it"
                )
            else:
                yield item
    except RetrievalInputError as fault:
        yield fault
    except OSError as error:
        yield RetrievalInputError(
            f"{file}: {error.strerror or error}; make the file readable or remove it"
        )
