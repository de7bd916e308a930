"""The library under SIGKILL: nothing half-built is seen, and a cut-off build goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from api.library import Library
from api.library.entry import State
from api.library.errors import NotReady
from api.library.rows import document_rows, fact_rows
from api.library.shelf import Shelf
from tests.house.source import ROOT

CODE = """
import os, signal, sys
from pathlib import Path
from api.library import Library
from api.library.rows import document_rows, fact_rows

root, at, extend = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "extend"
library = Library(root)
written = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    global written
    if at == "commit" and event == "os.rename" and str(arguments[1]).endswith("entry.json"):
        written += 1  # the first says that it is being built, the second that it is there
        if written == 2:
            die()
    if at == "upload" and event == "open" and str(arguments[0]).endswith("parsed.jsonl"):
        die()

sys.addaudithook(hook)
if at == "embed":
    def telling(folder):
        def tell(stage, done, total):
            if stage == "embed" and done >= 32:
                die()
        return tell
    library.indexes._teller = telling
    rows = [{"id": f"d{n}", "text": f"Fact {n} is about {n * 7}."} for n in range(48)]
    library.indexes.rows("a", "it", document_rows(rows), extend=extend, wait=120)
else:
    rows = [{"head": f"d{n}", "relation": "r", "tail": "fact"} for n in range(48)]
    library.graphs.rows("a", "it", fact_rows(rows), extend=extend, wait=120)
"""
FIRST = document_rows([{"id": "old", "text": "An old fact."}])
FACT = fact_rows([{"head": "old", "relation": "r", "tail": "fact"}])


def shelf(library: Library, at: str) -> Shelf:
    """Where the killed process works: embedding takes an index, the rest goes with a graph."""
    return library.indexes if at == "embed" else library.graphs


def killed(root: Path, at: str, how: str) -> None:
    """A process that uploads and is killed at a point of it."""
    command = [sys.executable, "-c", CODE, str(root), at, how]
    done = subprocess.run(command, cwd=ROOT, timeout=150, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def names(shelf: Shelf) -> set[str]:
    """Ids of documents, or heads of facts."""
    if shelf.kind.name == "index":
        (hits,) = shelf.open("a", "it", "bm25").search(["fact"], 1_000)
        return {hit.passage.document_id for hit in hits}
    (hits,) = shelf.open("a", "it").search(["fact"], 1_000)
    return {hit.passage.metadata["head"] for hit in hits}


@pytest.mark.parametrize("at", ["upload", "embed", "commit"])
def test_a_first_build_that_is_killed_shows_nothing(tmp_path: Path, at: str) -> None:
    root = tmp_path / "library"
    killed(root, at, "create")
    with Library(root) as library:
        items = shelf(library, at)
        if at == "upload":
            assert items.list("a") == []
            assert items.rows("a", "it", FACT, extend=False, wait=120).version == 1
            return
        (entry,) = items.list("a")
        assert entry.error and entry.error.code == "interrupted"
        assert (entry.state, entry.version, entry.restartable) == (State.FAILED, None, True)
        with pytest.raises(NotReady):
            items.open("a", "it")
        if at == "embed":
            assert list(root.rglob("*.journal")), "vectors that were computed are not lost"
        assert items.restart("a", "it", wait=120).state == State.READY
        assert names(items) == {f"d{n}" for n in range(48)}
        assert not list(root.rglob("pending")) and not list(root.rglob("*.journal"))


@pytest.mark.parametrize("at", ["upload", "embed", "commit"])
def test_an_addition_that_is_killed_leaves_the_version_before(tmp_path: Path, at: str) -> None:
    root = tmp_path / "library"
    with Library(root) as library:
        first = FIRST if at == "embed" else FACT
        shelf(library, at).rows("a", "it", first, extend=False, wait=120)
    killed(root, at, "extend")
    with Library(root) as library:
        items = shelf(library, at)
        entry = items.get("a", "it")
        assert entry.version == 1 and names(items) == {"old"}
        if at == "upload":
            assert entry.state == State.READY
        else:
            assert (entry.state, entry.restartable) == (State.FAILED, True)
            assert items.restart("a", "it", wait=120).version == 2
            assert names(items) == {"old", *(f"d{n}" for n in range(48))}
