"""Every format, and everything that can be wrong with a document."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium
import pytest

from retrieval.documents import Document, load
from retrieval.errors import BadDocuments, RetrievalInputError

PAGE = """<html><head><title>The Tower</title></head><body><nav><a href="/">Home</a></nav>
<article><h1>The Tower</h1><p>The tower was built in 1889 and it is made of iron. It stands in
Paris beside the river, and engineers from many countries came to see how it was raised.</p>
</article><footer>Copyright notice</footer></body></html>"""


def pdf(file: Path, lines: list[str]) -> None:
    """A PDF with a page per line; an empty line makes a page without text."""
    document = pypdfium2.PdfDocument.new()
    for line in lines:
        page = document.new_page(300, 200)
        if line:
            font = pdfium.FPDFText_LoadStandardFont(document, b"Helvetica")
            text = pdfium.FPDFPageObj_CreateTextObj(document, font, 12.0)
            encoded = (line + "\0").encode("utf-16-le")
            wide = (pdfium.c_ushort * (len(encoded) // 2)).from_buffer_copy(encoded)
            pdfium.FPDFText_SetText(text, wide)
            pdfium.FPDFPageObj_Transform(text, 1, 0, 0, 1, 20, 100)
            pdfium.FPDFPage_InsertObject(page, text)
            page.gen_content()
    document.save(file)
    document.close()


def one(path: Path) -> Document:
    """The only document of a path."""
    (document,) = load(path)
    return document


def fault(path: Path) -> str:
    """The message that refuses a path."""
    with pytest.raises(RetrievalInputError) as caught:
        list(load(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_keeps_every_character(tmp_path: Path) -> None:
    text = "\ufeffFirst line\r\nsecond\u00a0line — ünïcödé 🙂\n"
    (tmp_path / "note.txt").write_bytes(text.encode())
    document = one(tmp_path / "note.txt")
    assert (document.text, document.id, document.title) == (text, "note.txt", "note")
    assert document.source == str(tmp_path / "note.txt")


def test_markdown_takes_its_first_heading(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"intro\r\n## The  Heading ##\r\n# Second\r\n")
    assert one(tmp_path / "a.md").title == "The  Heading"
    (tmp_path / "a.md").write_text("no heading, #hash\n", encoding="utf-8")
    assert one(tmp_path / "a.md").title == "a"


def test_html_is_reduced_to_its_article(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    document = one(tmp_path / "a.html")
    assert document.title == "The Tower"
    assert "built in 1889" in document.text
    assert "<p>" not in document.text and "Copyright" not in document.text


def test_pdf_gives_the_text_of_all_pages(tmp_path: Path) -> None:
    pdf(tmp_path / "a.pdf", ["Polonium was found in 1898.", "", "Radium came later."])
    document = one(tmp_path / "a.pdf")
    assert document.text == "Polonium was found in 1898.\n\nRadium came later."
    assert document.title == "a"


def test_jsonl_rows_are_documents_with_metadata(tmp_path: Path) -> None:
    rows = [{"id": "x", "title": "T", "text": "one", "year": 1898, "tags": ["a"]},
            {"id": 7, "text": "two\u2028lines"}]  # fmt: skip
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8"
    )
    first, second = load(tmp_path / "a.jsonl")
    assert (first.id, first.title, first.text) == ("x", "T", "one")
    assert first.metadata == {"year": 1898, "tags": ["a"]}
    assert (second.id, second.title, second.text) == ("7", "", "two\u2028lines")


def test_a_folder_is_read_in_order_of_posix_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.TXT", "a/b/c.md", ".hidden/x.txt", ".x.txt", "table.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    assert [document.id for document in load(tmp_path)] == ["a/b/c.md", "a/z.TXT", "b.txt"]


ROWS = [
    (b"[1, 2]", "the row is a list"),
    (b'{"id": "x"', "not a JSON row"),
    (b'{"id": "x", "text": NaN}', "NaN is not JSON"),
    (b'{"id": "x", "text": ""}', "text='' must be a string with text"),
    (b'{"id": "x"}', "text=None must be"),
    (b'{"text": "t"}', "id=None must be"),
    (b'{"id": true, "text": "t"}', "id=True must be"),
    (b'{"id": "x", "text": "t", "title": 3}', "title=3 must be"),
    (b'{"id": "x", "text": "\\ud800"}', "half a surrogate pair"),
    (b'{"id": "x", "text": "\xff"}', "not UTF-8"),
    (b"[" * 100_000, "not a JSON row"),
]


@pytest.mark.parametrize(("row", "message"), ROWS, ids=[message for _, message in ROWS])
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "0", "text": "fine"}\n\n' + row + b"\n")
    found = fault(tmp_path / "a.jsonl")
    assert "a.jsonl:3: " in found
    assert message in found


def test_bad_files_are_named_with_their_trouble(tmp_path: Path) -> None:
    contents = {
        "latin.txt": (b"caf\xe9 au lait", "not UTF-8 (byte 0xe9 at 3)"),
        "binary.md": (b"\x7fELF\0\0", "binary content (a NUL byte at 4)"),
        "blank.txt": (b" \n", "holds no text"),
        "empty.pdf": (b"", "an empty file, not a PDF"),
        "fake.pdf": (b"hello", "not a readable PDF"),
        "nothing.html": (b"<html><body></body></html>", "no readable text"),
        "empty.html": (b"", "no readable text"),
        "empty.jsonl": (b"\n", "holds no row"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert message in fault(tmp_path / name), name
        assert name in fault(tmp_path / name)
    pdf(tmp_path / "scan.pdf", ["", ""])
    assert "a PDF without text (2 pages)" in fault(tmp_path / "scan.pdf")


def test_all_bad_files_of_a_folder_are_reported_and_the_good_ones_stream(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("good", encoding="utf-8")
    (tmp_path / "c.pdf").write_bytes(b"")
    stream = load(tmp_path)
    assert next(stream).id == "b.txt"
    with pytest.raises(BadDocuments) as caught:
        next(stream)
    assert [line.split(":")[0].rpartition("/")[2] for line in caught.value.faults] == [
        "a.txt",
        "c.pdf",
    ]


def test_ids_must_differ_across_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"id": "same", "text": "t"}\n', encoding="utf-8")
    assert "'same' already stands in" in fault(tmp_path)


def test_paths_that_hold_no_documents(tmp_path: Path) -> None:
    assert "no such file or folder" in fault(tmp_path / "missing")
    assert "the folder holds no document" in fault(tmp_path)
    (tmp_path / "table.csv").write_text("a,b", encoding="utf-8")
    assert "the folder holds no document" in fault(tmp_path)
    assert "the format '.csv' is not supported" in fault(tmp_path / "table.csv")


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    docs, outside = tmp_path / "docs", tmp_path / "outside"
    docs.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    (docs / "a.txt").write_text("fine", encoding="utf-8")
    (docs / "inside.txt").symlink_to(docs / "a.txt")
    assert [document.id for document in load(docs)] == ["a.txt", "inside.txt"]
    (docs / "file.txt").symlink_to(outside / "secret.txt")
    (docs / "folder").symlink_to(outside, target_is_directory=True)
    message = fault(docs)
    assert "file.txt: the link leaves" in message and "folder: the link leaves" in message


def test_a_pipe_does_not_block_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a regular file" in fault(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "a.txt").chmod(0)
    assert "Permission denied; make the file readable" in fault(tmp_path / "a.txt")
