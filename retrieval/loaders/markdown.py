"""Markdown, kept as it is written so that offsets point into the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from retrieval.documents import Document
from retrieval.loaders.text import read_utf8

HEADING = re.compile(r"^#{1,6}[ \t]+(?P<title>[^\r\n]*?)[ \t]*#*[ \t]*$", re.MULTILINE)


def load_markdown(file: Path, name: str) -> Iterator[Document]:
    """One document titled by its first heading, or by the name of the file."""
    text = read_utf8(file)
    heading = HEADING.search(text.replace("\r", ""))
    title = heading["title"] if heading and heading["title"] else file.stem
    yield Document(id=name, title=title, source=str(file), text=text)
