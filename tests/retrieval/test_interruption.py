"""Builds that are killed, that run out of space, and that run at the same time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.documents import Document
from retrieval.errors import RetrievalError
from retrieval.index import build_index, open_index
from retrieval.table import retriever_config

PREPARE = """
import os, resource, signal, sys
from pathlib import Path
from retrieval.documents import Document
from retrieval.index import build_index
from retrieval.errors import RetrievalError

out, count = Path(sys.argv[1]), int(sys.argv[2])
docs = [Document(f"d{n}", "", "x", f"Fact number {n} is about {n * 7}.") for n in range(count)]

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_EMBEDDING = """
def progress(stage, done, total):
    if stage == "embed" and done >= 64:
        die()
build_index(docs, out, progress=progress)
"""
KILLED_AT_RENAME = """
seen = 0
def hook(event, arguments):
    global seen
    if event == "os.rename" and str(out.name) in str(arguments[1]):
        seen += 1
        if seen == int(sys.argv[3]):
            die()
sys.addaudithook(hook)
build_index(docs, out)
"""
KILLED_AFTER_COMMIT = """
import shutil
def hook(event, arguments):
    if event == "shutil.rmtree" and Path(arguments[0]).parent == out:
        die()
sys.addaudithook(hook)
build_index(docs, out)
"""
FULL_DISK = """
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
try:
    build_index(docs, out)
except RetrievalError as error:
    print(error)
"""
BUILD = "print(build_index(docs, out).to_dict())"


def script(body: str, *arguments: object) -> list[str]:
    """The command line of a process that builds."""
    return [sys.executable, "-c", PREPARE + body, *map(str, arguments)]


def run(body: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        script(body, *arguments), capture_output=True, text=True, timeout=200, check=False
    )


def build(out: Path, count: int) -> int:
    """Build the same documents in this process; the number of passages computed."""
    docs = [Document(f"d{n}", "", "x", f"Fact number {n} is about {n * 7}.") for n in range(count)]
    return build_index(docs, out).embedded


def texts(index: Path, query: str = "fact") -> set[str]:
    """The documents of all passages, through a search."""
    (hits,) = retriever_config("bm25").open(index).search([query], 10_000)
    return {hit.passage.document_id for hit in hits}


def embedded(output: str) -> int:
    """How many passages a build says it computed."""
    found = re.search(r"'embedded': (\d+)", output)
    assert found, output
    return int(found[1])


def test_a_killed_build_continues_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "index"
    assert run(KILLED_EMBEDDING, out, 150).returncode == -signal.SIGKILL
    assert not out.exists()
    (journal,) = (tmp_path / ".index.staging").glob("*.journal")
    with journal.open("ab") as torn:
        torn.write(b"half a record")
    assert 0 < build(out, 150) <= 150 - 64
    assert len(texts(out)) == 150
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_flipped_journal_record_is_computed_again(tmp_path: Path) -> None:
    out = tmp_path / "index"
    assert run(KILLED_EMBEDDING, out, 150).returncode == -signal.SIGKILL
    (journal,) = (tmp_path / ".index.staging").glob("*.journal")
    data = bytearray(journal.read_bytes())
    data[100] ^= 1
    journal.write_bytes(data)
    assert build(out, 150) == 150


@pytest.mark.parametrize("rename", [1, 2])
def test_killed_while_swapping_leaves_a_whole_index(tmp_path: Path, rename: int) -> None:
    out = tmp_path / "index"
    build(out, 3)
    assert run(KILLED_AT_RENAME, out, 5, rename).returncode == -signal.SIGKILL
    assert texts(out) == {f"d{n}" for n in range(3)}
    assert build(out, 5) == 0
    assert texts(out) == {f"d{n}" for n in range(5)}
    generation = open_index(out).manifest.generation
    assert {path.name for path in out.iterdir()} == {"manifest.json", generation}


def test_killed_after_the_commit_leaves_the_fresh_index(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 3)
    assert run(KILLED_AFTER_COMMIT, out, 5).returncode == -signal.SIGKILL
    assert texts(out) == {f"d{n}" for n in range(5)}
    build(out, 5)
    assert len(list(out.iterdir())) == 2


def test_a_full_disk_leaves_the_old_index_and_a_rerun_continues(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 3)
    full = run(FULL_DISK, out, 150)
    assert "File too large" in full.stdout, full.stderr
    assert "what was there before is unchanged" in full.stdout
    assert texts(out) == {f"d{n}" for n in range(3)}
    assert build(out, 150) < 150 - 3
    assert len(texts(out)) == 150


def test_two_processes_may_build_into_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "index"
    processes = [
        subprocess.Popen(script(BUILD, out, 40), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert sorted(embedded(output) for output in outputs) == [0, 40]
    assert len(texts(out)) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RetrievalError, match="make the folder writable"):
        build_index([Document("a", "", "x", "text")], tmp_path / "index")
