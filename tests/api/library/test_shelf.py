"""Named things of tenants: created, extended, opened, deleted; apart, whole, and within limits."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from api.library import Library, Quota
from api.library.entry import Entry, State, read_entry
from api.library.errors import (
    BadUpload,
    LibraryError,
    LibraryInputError,
    NameTaken,
    NotReady,
    QuotaExceeded,
    StorageFull,
    UnknownItem,
)
from api.library.places import NAME, Places
from api.library.rows import document_rows, fact_rows
from api.library.upload import Given
from graphs.store import GraphStore
from tests.api.library.conftest import given
from workflows.errors import InvalidWorkflow, WorkflowInputError
from workflows.loading import load_workflow

FACTS = "Ada\twrote\tNotes\nNotes\tdescribe\tEngine\n"
FOX = "# Fox\n\nThe fox lives in Vessmark.\n"


def make(
    library: Library, tenant: str = "a", name: str = "g", facts: str = FACTS, extend: bool = False
) -> Entry:
    files = [given("facts.tsv", facts)]
    return library.graphs.files(tenant, name, files, extend=extend, wait=60)


def heads(folder: Path) -> set[str]:
    return {fact.head for fact in GraphStore.open(folder).facts}


def texts(library: Library, name: str, query: str, tenant: str = "a") -> list[str]:
    retriever = library.indexes.open(tenant, name, "bm25")
    return [hit.passage.text for hit in retriever.search([query], 10)[0] if hit.score > 0]


def test_an_index_of_files_of_several_formats(library: Library) -> None:
    files = [
        given("animals/fox.md", FOX),
        given("owl.txt", "The owl lives in Dorn."),
        given(
            "more.jsonl", '{"id": 7, "title": "Elk", "text": "The elk roams.", "kind": "deer"}\n'
        ),
        given("page.html", "<html><title>Hare</title><p>The hare runs over the hill.</p></html>"),
    ]
    entry = library.indexes.files("a", "animals", files, extend=False, wait=120)
    assert (entry.state, entry.version) == (State.READY, 1)
    assert entry.counts["documents"] == 4 and entry.bytes > 0 and entry.error is None
    retriever = library.indexes.open("a", "animals")
    assert library.indexes.open("a", "animals") is retriever
    (hits,) = retriever.search(["Where does the fox live?"], 1)
    passage = hits[0].passage
    assert (passage.document_id, passage.source) == ("animals/fox.md", "animals/fox.md")
    assert passage.title == "Fox"
    assert passage.text == FOX[passage.start : passage.end]
    (elk,) = retriever.search(["elk"], 1, where={"kind": "deer"})[0]
    assert elk.passage.document_id == "7"
    owl = retriever.search(["owl"], 1)[0][0].passage
    assert owl.title == "owl", "a file without a title is called by its name, not its number"


def test_adding_publishes_a_version_and_leaves_the_old_one(library: Library) -> None:
    rows = document_rows([{"id": "fox", "text": "The fox lives in Vessmark."}])
    library.indexes.rows("a", "i", rows, extend=False, wait=120)
    first = library.index("a", "i")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    more = document_rows([{"id": "owl", "text": "The owl lives in Dorn."}])
    entry = library.indexes.rows("a", "i", more, extend=True, wait=120)
    assert (entry.version, entry.counts["documents"]) == (2, 2)
    assert library.index("a", "i") != first
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert texts(library, "i", "owl") == ["The owl lives in Dorn."]


def test_only_the_newest_versions_stay(library: Library) -> None:
    make(library)
    folders = [library.graph("a", "g")]
    for number in range(4):
        make(library, facts=f"x{number}\tr\ty\n", extend=True)
        folders.append(library.graph("a", "g"))
    assert [folder.exists() for folder in folders] == [False, False, True, True, True]
    assert heads(folders[-1]) == {"Ada", "Notes", "x0", "x1", "x2", "x3"}
    assert heads(folders[2]) == {"Ada", "Notes", "x0", "x1"}


def test_tenants_know_nothing_of_each_other(library: Library) -> None:
    make(library, "a", "g")
    for call in (library.graphs.get, library.graphs.folder, library.graphs.delete):
        with pytest.raises(UnknownItem, match="no graph 'g'"):
            call("b", "g")
    assert library.graphs.list("b") == []
    with pytest.raises(UnknownItem):
        make(library, "b", "g", extend=True)
    make(library, "b", "g", "Eve\tr\ts\n")
    assert heads(library.graph("a", "g")) == {"Ada", "Notes"}
    assert heads(library.graph("b", "g")) == {"Eve"}
    library.graphs.delete("b", "g")
    assert heads(library.graph("a", "g")) == {"Ada", "Notes"}


@for_all(st.text(max_size=12), st.text(max_size=12))
def test_names_and_tenants_never_leave_the_root(tenant: str, name: str) -> None:
    places = Places(Path("/nowhere/library"))
    root = places.tenant(tenant)
    assert root.parent == places.root and root.name.isalnum()
    if NAME.fullmatch(name):
        assert places.item(tenant, "index", name).parent == root / "index"
        assert ".." not in places.item(tenant, "index", name).parts
    else:
        with pytest.raises(LibraryInputError):
            places.item(tenant, "index", name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "é", "a" * 65, "a\n"]
)
def test_hostile_names(library: Library, name: str) -> None:
    for call in (library.graphs.get, library.index, library.workflow, library.graphs.delete):
        with pytest.raises(LibraryInputError, match="must be 1 to 64 letters"):
            call("a", name)
    with pytest.raises(LibraryInputError):
        make(library, name=name)
    with pytest.raises(LibraryInputError):
        library.add_workflow("a", name, FLOW)


def test_links_inside_the_library_are_refused(library: Library, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    make(library)
    shelf = library.graph("a", "g").parents[2]
    (shelf / "link").symlink_to(outside, target_is_directory=True)
    with pytest.raises(LibraryError, match="a link inside the library"):
        library.graphs.get("a", "link")
    with pytest.raises(LibraryError, match="a link inside the library"):
        make(library, name="link")
    assert list(outside.iterdir()) == []


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


def test_names_are_taken_and_freed(library: Library) -> None:
    make(library)
    with pytest.raises(NameTaken, match="exists already"):
        make(library)
    opened = library.graphs.open("a", "g")
    library.graphs.delete("a", "g")
    with pytest.raises(UnknownItem):
        library.graph("a", "g")
    with pytest.raises(UnknownItem):
        library.graphs.delete("a", "g")
    assert opened.search(["Ada"], 1)[0][0].passage.text == "Ada wrote Notes", "goes on with it"
    make(library, facts="Eve\tr\ts\n")
    assert library.graphs.open("a", "g").search(["Eve"], 1)[0]


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


def test_changes_at_once_take_turns_and_none_is_lost(library: Library) -> None:
    make(library)
    with ThreadPoolExecutor(4) as threads:
        work = [threads.submit(make, library, facts=f"w{n}\tr\ty\n", extend=True) for n in range(4)]
        versions = sorted(done.result(timeout=60).version or 0 for done in work)
    assert versions == [2, 3, 4, 5]
    assert heads(library.graph("a", "g")) == {"Ada", "Notes", "w0", "w1", "w2", "w3"}


def test_one_of_several_creations_wins(library: Library) -> None:
    def create(number: int) -> str:
        try:
            make(library, facts=f"w{number}\tr\ty\n")
        except NameTaken:
            return "taken"
        return f"w{number}"

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(create, range(4)))
    (winner,) = [one for one in found if one != "taken"]
    assert heads(library.graph("a", "g")) == {winner}


def test_a_long_build_is_told_as_it_goes(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build waits at its first word until the test has looked."""
    looked = threading.Event()
    teller = library.indexes._teller

    def slow(folder: Path) -> Any:
        tell = teller(folder)

        def held(stage: str, done: int, total: int | None) -> None:
            tell(stage, done, total)
            looked.wait(30)

        return held

    monkeypatch.setattr(library.indexes, "_teller", slow)
    rows = document_rows([{"id": str(n), "text": f"fact {n}"} for n in range(3)])
    entry = library.indexes.rows("a", "i", rows, extend=False, wait=0)
    try:
        deadline = time.monotonic() + 30
        while entry.progress is None and time.monotonic() < deadline:
            assert entry.state == State.BUILDING and entry.version is None
            time.sleep(0.02)
            entry = library.indexes.get("a", "i")
        assert entry.progress and entry.progress.done >= 1
        with pytest.raises(NotReady, match="is building; wait for it"):
            library.index("a", "i")
    finally:
        looked.set()
    while library.indexes.get("a", "i").state == State.BUILDING:
        assert time.monotonic() < deadline + 30
        time.sleep(0.02)
    assert library.indexes.get("a", "i").counts["documents"] == 3


def test_a_build_that_stops_with_the_service_can_be_restarted(tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    rows = document_rows([{"id": str(n), "text": f"fact number {n}"} for n in range(400)])
    entry = library.indexes.rows("a", "i", rows, extend=False, wait=0)
    assert entry.state == State.BUILDING
    library.close()
    with Library(tmp_path / "library") as again:
        entry = again.indexes.get("a", "i")
        assert entry.error and (entry.state, entry.error.code) == (State.FAILED, "interrupted")
        assert entry.restartable
        with pytest.raises(NotReady, match="is failed; restart or delete it"):
            again.index("a", "i")
        entry = again.indexes.restart("a", "i", wait=120)
        assert (entry.state, entry.counts["documents"]) == (State.READY, 400)
        with pytest.raises(LibraryInputError, match="nothing to build from"):
            again.indexes.restart("a", "i", wait=1)
    with pytest.raises(LibraryError, match="is stopping"):
        library.graphs.files("a", "late", [given("a.tsv", FACTS)], extend=False, wait=1)


def test_a_build_that_fails_leaves_the_version_before(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = document_rows([{"id": "fox", "text": "The fox lives in Vessmark."}])
    library.indexes.rows("a", "i", rows, extend=False, wait=120)
    folder = library.index("a", "i")
    (vectors,) = folder.rglob("vectors.npy")
    content = vectors.read_bytes()
    vectors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Exception, match="changed since the index was built"):
        library.indexes.rows(
            "a", "i", document_rows([{"id": "b", "text": "t"}]), extend=True, wait=60
        )
    entry = library.indexes.get("a", "i")
    assert entry.error and (entry.state, entry.error.code) == (State.FAILED, "bad_index")
    assert entry.restartable and library.index("a", "i") == folder
    vectors.write_bytes(content)
    assert library.indexes.restart("a", "i", wait=60).counts["documents"] == 2


def test_a_damaged_entry_is_named(library: Library) -> None:
    make(library)
    file = library.graph("a", "g").parents[1] / "entry.json"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(LibraryError, match="damaged"):
        library.graphs.get("a", "g")
    assert read_entry(file.parent.parent / "nothing") is None


FLOW = """name: NAME
inputs: {a: {type: string}}
nodes: {put: {use: set, with: {values: {text: "${inputs.a}"}}}}
edges: [{from: start, to: put}, {from: put, to: end}]
outputs: {answer: "${state.text}"}
"""
CALLS = """name: calls
nodes: {call: {use: workflow, with: {name: mine.yaml, inputs: {a: x}}}}
edges: [{from: start, to: call}, {from: call, to: end}]
outputs: {answer: "${state.outputs.answer}"}
"""


def test_workflows(library: Library) -> None:
    file = library.add_workflow("a", "mine", FLOW)
    assert (file.read_text(encoding="utf-8"), library.workflows("a")) == (FLOW, ["mine"])
    library.add_workflow("a", "mine", FLOW.replace("NAME", "other"))
    assert load_workflow(library.workflow("a", "mine")).spec.name == "other"
    caller = library.add_workflow("a", "calls", CALLS)
    assert load_workflow(caller).children["call"].spec.name == "other"
    assert library.workflows("b") == []
    with pytest.raises(UnknownItem, match="no workflow 'mine'"):
        library.workflow("b", "mine")
    with pytest.raises(InvalidWorkflow, match=r"mine\.yaml"):
        library.add_workflow("b", "calls", CALLS)
    library.remove_workflow("a", "mine")
    with pytest.raises(UnknownItem):
        library.remove_workflow("a", "mine")
    assert [path.name for path in file.parent.iterdir()] == ["calls.yaml"]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("mine", "name: [", "workflow"),
        ("mine", FLOW + "# " + "x" * 2**20, "bytes, .* are allowed"),
        ("workflow", FLOW, "cannot be called"),
        (
            "mine",
            FLOW + "resources: {e: {use: openai, base_url: 'http://192.0.2.1'}}",
            "names a host",
        ),
        ("mine", CALLS.replace("mine.yaml", "../../other/workflow/x.yaml"), "outside the folder"),
        ("mine", CALLS.replace("mine.yaml", "/etc/x.yaml"), "outside the folder"),
    ],
)
def test_workflows_that_are_refused(library: Library, name: str, text: str, fault: str) -> None:
    with pytest.raises(WorkflowInputError, match=fault):
        library.add_workflow("a", name, text)
    assert library.workflows("a") == []


def test_only_so_many_workflows(tmp_path: Path) -> None:
    with Library(tmp_path, Quota(workflows=1)) as library:
        library.add_workflow("a", "one", FLOW)
        library.add_workflow("a", "one", FLOW)
        with pytest.raises(QuotaExceeded, match="1 workflows are kept already"):
            library.add_workflow("a", "two", FLOW)


class _Full(io.RawIOBase):
    """A file whose reading fails as a full disk does when its copy is written."""

    def read(self, size: int = -1) -> bytes:
        raise OSError(28, "No space left on device")


def test_a_full_disk_while_an_upload_comes_in(library: Library) -> None:
    full: Any = _Full()
    with pytest.raises(StorageFull, match="the disk is full"):
        library.graphs.files("a", "g", [Given("a.tsv", full)], extend=False, wait=1)
    assert library.graphs.list("a") == []
