"""Uploads that are refused: bad files and rows, too many, too large, too slow, no space."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from api.library import Library, Quota
from api.library.entry import State
from api.library.errors import (
    BadUpload,
    QuotaExceeded,
    StorageFull,
)
from api.library.rows import document_rows, fact_rows
from api.library.upload import Given
from tests.api.library.conftest import FACTS, given, make


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("a.tsv", "a\tb\n", r"^a\.tsv:1: 2 columns"),
        ("../../../etc/a.tsv", FACTS, "the file name '../../../etc/a.tsv' must be"),
        ("/etc/a.tsv", FACTS, "the file name '/etc/a.tsv' must be"),
        ("..\\a.tsv", FACTS, "the file name"),
        ("a\n.tsv", FACTS, "the file name"),
        ("", FACTS, "the file name"),
        ("a.exe", FACTS, r"a\.exe: the format '\.exe' is not supported"),
        ("a.tsv", b"\xff\xfe", r"a\.tsv:1: not UTF-8"),
        ("a.ttl", "@prefix", r"a\.ttl:1: not Turtle"),
        (
            "a.graphml",
            '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><graphml>&e;</graphml>',
            r"a\.graphml:1: a document type declaration is not allowed",
        ),
    ],
)
def test_bad_files_leave_nothing(
    library: Library, tmp_path: Path, file: str, content: str | bytes, fault: str
) -> None:
    with pytest.raises(BadUpload, match=fault) as caught:
        library.graphs.files("a", "g", [given(file, content)], extend=False, wait=60)
    assert str(tmp_path) not in str(caught.value), "a message never tells where things lie"
    assert library.graphs.list("a") == []
    make(library)
    before = library.graph("a", "g")
    with pytest.raises(BadUpload, match=fault):
        library.graphs.files("a", "g", [given(file, content)], extend=True, wait=60)
    assert library.graphs.get("a", "g").state == State.READY
    assert library.graph("a", "g") == before
    assert not any(path.name == "pending" for path in tmp_path.rglob("*"))


def test_all_faults_of_an_upload_at_once(library: Library) -> None:
    files = [
        given("a.pdf", "no pdf"),
        given("b.txt", " \n"),
        given("c.jsonl", '{"id": "x", "text": "t"}\n{"id": "x", "text": NaN}\n'),
        given("d.txt", b"\x00"),
    ]
    with pytest.raises(BadUpload) as caught:
        library.indexes.files("a", "i", files, extend=False, wait=60)
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [
        "a.pdf",
        "b.txt",
        "c.jsonl:2",
        "d.txt",
    ]


@pytest.mark.parametrize(
    ("documents", "fault"),
    [
        (
            [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}],
            r"documents\[1\]: the id 'a' stands",
        ),
        ([{"id": "a", "text": " "}], r"documents\[0\]: holds no text"),
        ([{"id": "a", "text": "x\0"}], "NUL"),
        ([{"id": "a\n", "text": "x"}], "must be printable"),
    ],
)
def test_bad_documents(documents: Sequence[dict[str, Any]], fault: str) -> None:
    with pytest.raises(BadUpload, match=fault):
        document_rows(documents)


def test_bad_triples_are_told_by_number() -> None:
    good = {"head": "a", "relation": "r", "tail": "b"}
    with pytest.raises(BadUpload) as caught:
        fact_rows([good, {**good, "head": " "}, {**good, "tail": "\x01"}])
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "triples[1]",
        "triples[2]",
    ]


def test_quotas(tmp_path: Path) -> None:
    quota = Quota(items=2, documents=4, files=2, file_bytes=1_000, characters=2_000)
    with Library(tmp_path / "library", quota) as library:
        make(library, name="one")
        make(library, name="two", facts="a\tb\tc\n")
        with pytest.raises(QuotaExceeded, match="2 are allowed; delete one"):
            make(library, name="three")
        with pytest.raises(QuotaExceeded, match="4 are allowed"):
            make(library, name="two", facts="p\tq\tr\ns\tt\tu\n", extend=True)
        assert make(library, name="two", facts="p\tq\tr\n", extend=True).counts["triples"] == 2
        make(library, tenant="b", name="three")
        with pytest.raises(BadUpload, match="larger than 1000 bytes"):
            make(library, tenant="c", facts="a\tb\tc\n" * 200)
        with pytest.raises(BadUpload, match="3 files, 2 are allowed"):
            files = [given(f"{n}.tsv", FACTS) for n in range(3)]
            library.graphs.files("c", "g", files, extend=False, wait=1)
        with pytest.raises(BadUpload, match="sent twice"):
            same = [given("a.tsv", FACTS), given("a.tsv", FACTS)]
            library.graphs.files("c", "g", same, extend=False, wait=1)
    with Library(tmp_path / "full", Quota(bytes=6_000)) as library:
        make(library)
        with pytest.raises((QuotaExceeded, BadUpload), match=r"are allowed|larger than"):
            make(library, facts="".join(f"{n}\tb\tc\n" for n in range(900)), extend=True)
        assert library.graphs.get("a", "g").state == State.READY


def test_a_reader_that_takes_too_much_is_ended(tmp_path: Path) -> None:
    with (
        Library(tmp_path / "small", Quota(characters=500)) as library,
        pytest.raises(BadUpload, match="more than 500 characters"),
    ):
        make(library, facts="".join(f"{n}\tb\tc\n" for n in range(100)))
    with Library(tmp_path / "slow", Quota(seconds=1)) as library:
        turtle = "@prefix : <http://x/> .\n" + "".join(f":a :b :c{n} .\n" for n in range(400_000))
        started = time.monotonic()
        with pytest.raises(BadUpload, match="took more than 1 s"):
            library.graphs.files("a", "g", [given("a.ttl", turtle)], extend=False, wait=60)
        assert time.monotonic() - started < 30
        assert library.graphs.list("a") == []


def test_a_pdf_of_too_many_pages(tmp_path: Path) -> None:
    import pypdfium2

    pdf, content = pypdfium2.PdfDocument.new(), io.BytesIO()
    for _ in range(3):
        pdf.new_page(100, 100)
    pdf.save(content)
    pdf.close()
    with (
        Library(tmp_path / "library", Quota(pages=2)) as library,
        pytest.raises(BadUpload, match=r"^long\.pdf: 3 pages, 2 are allowed"),
    ):
        files = [given("long.pdf", content.getvalue())]
        library.indexes.files("a", "i", files, extend=False, wait=60)


class _Full(io.RawIOBase):
    """A file whose reading fails as a full disk does when its copy is written."""

    def read(self, size: int = -1) -> bytes:
        raise OSError(28, "No space left on device")


def test_a_full_disk_while_an_upload_comes_in(library: Library) -> None:
    full: Any = _Full()
    with pytest.raises(StorageFull, match="the disk is full"):
        library.graphs.files("a", "g", [Given("a.tsv", full)], extend=False, wait=1)
    assert library.graphs.list("a") == []
