"""PDF files with a text layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from retrieval.documents import Document
from retrieval.errors import RetrievalInputError

PDFIUM = Lock()
"""PDFium is not safe to call from several threads."""


def load_pdf(file: Path, name: str) -> Iterator[Document]:
    """One document: the text of all pages, joined by a blank line; offsets refer to it."""
    import pypdfium2

    if file.stat().st_size == 0:
        raise RetrievalInputError(f"{file}: an empty file, not a PDF; replace or remove it")
    with file.open("rb"):
        pass  # an unreadable file fails here with the reason of the operating system
    with PDFIUM:
        try:
            pdf = pypdfium2.PdfDocument(file)
        except pypdfium2.PdfiumError as error:
            raise RetrievalInputError(
                f"{file}: not a readable PDF ({error}); repair or decrypt it, or remove it"
            ) from None
        try:
            pages = [_page_text(pdf, number) for number in range(len(pdf))]
            title = pdf.get_metadata_value("Title").strip() or file.stem
        finally:
            pdf.close()
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise RetrievalInputError(
            f"{file}: a PDF without text ({len(pages)} pages); "
            "run text recognition on it first (for example ocrmypdf), or remove it"
        )
    yield Document(id=name, title=title, source=str(file), text=text)


def _page_text(pdf: object, number: int) -> str:
    """Text of one page with plain line ends; PDFium marks a hyphen at a line end by U+FFFE."""
    page = pdf[number]  # type: ignore[index]
    try:
        textpage = page.get_textpage()
        try:
            text: str = textpage.get_text_bounded()
        finally:
            textpage.close()
    finally:
        page.close()
    text = text.replace("\r\n", "\n").replace("\ufffe\n", "").replace("\ufffe", "")
    return text.replace("\0", "").strip()
