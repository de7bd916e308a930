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
from api.library.rows import document_rows
from retrieval.documents import Document
from retrieval.retriever import Retriever
from tests.house.source import ROOT

CODE = """
import os, signal, sys
from pathlib import Path
from api.library import Library
from api.library.rows import document_rows

root, at, extend = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "extend"
library = Library(root)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    if at == "commit" and event == "os.rename" and str(arguments[1]).endswith("entry.json"):
        if (root.parent / "armed").exists():
            die()
        (root.parent / "armed").touch()
    if at == "upload" and event == "open" and str(arguments[0]).endswith("parsed.jsonl"):
        die()

sys.addaudithook(hook)
teller = library.indexes._teller
def telling(folder):
    def tell(stage, done, total):
        if at == "embed" and stage == "embed" and done >= 64:
            die()
    return tell
library.indexes._teller = telling
rows = document_rows([{"id": f"d{n}", "text": f"Fact {n} is about {n * 7}."} for n in range(150)])
library.indexes.rows("a", "i", rows, extend=extend, wait=120)
"""


def killed(root: Path, at: str, how: str) -> None:
    """A process that uploads and is killed at a point of it."""
    command = [sys.executable, "-c", CODE, str(root), at, how]
    done = subprocess.run(command, cwd=ROOT, timeout=150, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def ids(retriever: Retriever) -> set[str]:
    (hits,) = retriever.search(["fact"], 1_000)
    return {hit.passage.document_id for hit in hits}


@pytest.mark.parametrize("at", ["upload", "embed", "commit"])
def test_a_first_build_that_is_killed_shows_nothing(tmp_path: Path, at: str) -> None:
    root = tmp_path / "library"
    killed(root, at, "create")
    with Library(root) as library:
        if at == "upload":
            assert library.indexes.list("a") == []
            rows = document_rows([{"id": "x", "text": "Another fact."}])
            assert library.indexes.rows("a", "i", rows, extend=False, wait=120).version == 1
            return
        (entry,) = library.indexes.list("a")
        assert entry.error and entry.error.code == "interrupted"
        assert (entry.state, entry.version, entry.restartable) == (State.FAILED, None, True)
        with pytest.raises(NotReady):
            library.indexes.open("a", "i")
        if at == "embed":
            assert list(root.rglob("*.journal")), "vectors that were computed are not lost"
        entry = library.indexes.restart("a", "i", wait=120)
        assert (entry.state, entry.counts["documents"]) == (State.READY, 150)
        assert ids(library.indexes.open("a", "i", "bm25")) == {f"d{n}" for n in range(150)}
        assert not list(root.rglob("pending")) and not list(root.rglob("*.journal"))


@pytest.mark.parametrize("at", ["upload", "embed", "commit"])
def test_an_addition_that_is_killed_leaves_the_version_before(tmp_path: Path, at: str) -> None:
    root = tmp_path / "library"
    with Library(root) as library:
        document = Document("old", "", "old", "An old fact.")
        rows = document_rows([{"id": document.id, "text": document.text}])
        library.indexes.rows("a", "i", rows, extend=False, wait=120)
    killed(root, at, "extend")
    with Library(root) as library:
        entry = library.indexes.get("a", "i")
        assert entry.version == 1
        assert ids(library.indexes.open("a", "i", "bm25")) == {"old"}
        if at == "upload":
            assert entry.state == State.READY
        else:
            assert (entry.state, entry.restartable) == (State.FAILED, True)
            entry = library.indexes.restart("a", "i", wait=120)
            assert (entry.version, entry.counts["documents"]) == (2, 151)
