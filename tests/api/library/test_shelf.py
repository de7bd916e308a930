"""Named things of tenants: created, extended, opened, deleted; apart, whole, and within limits."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from api.library import Library
from api.library.entry import State, read_entry
from api.library.errors import (
    LibraryError,
    LibraryInputError,
    NameTaken,
    NotReady,
    UnknownItem,
)
from api.library.places import NAME, Places
from api.library.rows import document_rows
from graphs.store import GraphStore
from tests.api.library.conftest import FACTS, given, make

FOX = "# Fox\n\nThe fox lives in Vessmark.\n"


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
        library.add_workflow("a", name, "name: x")


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
