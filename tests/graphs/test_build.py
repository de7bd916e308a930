"""Graph folders: what is published, added, removed, refused, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.build import add_facts, build_graph, remove_facts
from graphs.cache import graph_for, graphs_home
from graphs.errors import BadGraph, GraphError, GraphInputError, UnknownEntity
from graphs.facts import Fact
from graphs.loaders import Loaded
from graphs.manifest import fingerprint, is_graph
from graphs.store import GraphStore
from tests.graphs.conftest import FACTS
from tests.house.source import ROOT

WORDS = st.sampled_from(["a", "b", "c", "d_e", "f g", "héé"])
SETS = st.lists(st.builds(Fact, WORDS, WORDS, WORDS), min_size=1, max_size=15)

KILLED = """
import os, signal, sys
from pathlib import Path
from graphs.build import add_facts
from graphs.facts import Fact
out, at = Path(sys.argv[1]), int(sys.argv[2])
seen = 0
def hook(event, arguments):
    global seen
    if event == "os.rename" and str(out.name) in str(arguments[1]):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
add_facts(out, [Fact("x", "y", "z")])
"""
FULL = """
import resource, sys
from graphs.build import add_facts
from graphs.errors import GraphError
from graphs.facts import Fact
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
try:
    add_facts(sys.argv[1], [Fact(f"x{n}", "y", "z") for n in range(500)])
except GraphError as error:
    print(error)
"""


def run(body: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", body, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def keys(path: Path) -> set[tuple[str, str, str]]:
    return {fact.key for fact in GraphStore.open(path).facts}


@given(first=SETS, second=SETS)
@settings(max_examples=25, deadline=None)
def test_a_graph_is_the_union_of_what_it_was_given(
    first: list[Fact], second: list[Fact], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("union") / "g"
    one, other = {f.key for f in first}, {f.key for f in second}
    report = build_graph(first, out)
    assert (report.triples, report.duplicates) == (len(one), len(first) - len(one))
    report = add_facts(out, second)
    assert (report.added, report.triples) == (len(other - one), len(one | other))
    store = GraphStore.open(out)
    assert [fact.key for fact in store.facts] == sorted(one | other)
    assert store.entities == sorted({n for h, _, t in one | other for n in (h, t)})
    together = tmp_path_factory.mktemp("union") / "g"
    build_graph([*first, *second], together)
    assert fingerprint(together) == fingerprint(out), "the same facts are the same graph"
    keep = sorted(one | other)[0]
    gone = sorted((one | other) - {keep})
    if gone:
        assert remove_facts(out, gone).removed == len(gone)
    assert keys(out) == {keep}


def test_provenance_and_offsets_are_exact(store: GraphStore) -> None:
    text = (store.manifest.folder(store.path) / "facts.txt").read_text(encoding="utf-8")
    by_key = {fact.key: fact for fact in FACTS}
    for row, fact in enumerate(store.facts):
        assert fact == by_key[fact.key]
        passage = store.passage(row)
        assert passage.text == text[passage.start : passage.end] == store.texts[row]
        assert passage.source == f"facts.tsv:{fact.line}"
        assert store.rows[passage.document_id] == row
    assert store.texts[store.rows[FACTS[2].id]] == "Marie Curie married Pierre Curie"


def test_a_fact_keeps_the_place_it_was_first_read_from(tmp_path: Path) -> None:
    build_graph([Fact("a", "r", "b", "one.tsv", 1)], tmp_path / "g")
    before = fingerprint(tmp_path / "g")
    report = add_facts(tmp_path / "g", [Fact("a", "r", "b", "two.tsv", 9)])
    assert (report.added, report.duplicates) == (0, 1)
    assert fingerprint(tmp_path / "g") == before


def test_names_are_kept_and_shown(tmp_path: Path) -> None:
    build_graph(Loaded([Fact("Q1", "r", "Q2")], {"Q1": ["Ada"]}), tmp_path / "g")
    add_facts(tmp_path / "g", Loaded([], {"Q1": ["Ada", "Countess"], "Q2": ["Engine"]}))
    store = GraphStore.open(tmp_path / "g")
    assert store.texts == ["Ada r Engine"]
    assert store.entity("countess").entity == "Q1"


def test_what_cannot_be_removed(tmp_path: Path) -> None:
    build_graph([Fact("a", "r", "b")], tmp_path / "g")
    with pytest.raises(UnknownEntity, match="holds no fact"):
        remove_facts(tmp_path / "g", [("a", "r", "c")])
    with pytest.raises(GraphInputError, match="no fact would be left"):
        remove_facts(tmp_path / "g", [("a", "r", "b")])
    assert keys(tmp_path / "g") == {("a", "r", "b")}


def test_folders_that_are_no_graph(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(GraphInputError, match="exists and is not a graph"):
        build_graph(FACTS, tmp_path / "full")
    with pytest.raises(BadGraph, match="not a graph folder"):
        add_facts(tmp_path / "nowhere", FACTS)
    with pytest.raises(BadGraph, match="not a graph folder"):
        GraphStore.open(tmp_path / "full")
    with pytest.raises(GraphInputError, match="no facts were given"):
        build_graph([], tmp_path / "none")
    with pytest.raises(GraphInputError, match="fact 1: the head is empty"):
        build_graph([Fact(" ", "r", "b")], tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_one_changed_byte_is_noticed(tmp_path: Path, graph_path: Path) -> None:
    for name in [*json.loads((graph_path / "manifest.json").read_bytes())["manifest"]["files"]]:
        copy = tmp_path / name
        shutil.copytree(graph_path, copy)
        file = next(copy.glob(f"*/{name}"))
        content = bytearray(file.read_bytes() or b"x")
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(BadGraph, match="changed since the graph was built"):
            GraphStore.open(copy)
        build_graph(FACTS, copy)
        assert fingerprint(copy) and keys(copy) == {fact.key for fact in FACTS}
    damaged = tmp_path / "manifest"
    shutil.copytree(graph_path, damaged)
    whole = (damaged / "manifest.json").read_text(encoding="utf-8")
    (damaged / "manifest.json").write_text(whole.replace('"triples": 10', '"triples": 11'))
    with pytest.raises(BadGraph, match="does not match its own hash"):
        GraphStore.open(damaged)


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_while_swapping_leaves_the_old_graph(tmp_path: Path, at: int) -> None:
    out = tmp_path / "graph"
    build_graph([Fact("a", "r", "b")], out)
    assert run(KILLED, out, at).returncode == -signal.SIGKILL
    assert keys(out) == {("a", "r", "b")}
    add_facts(out, [Fact("x", "y", "z")])
    assert keys(out) == {("a", "r", "b"), ("x", "y", "z")}
    assert len(list(out.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_a_full_disk_leaves_the_old_graph(tmp_path: Path) -> None:
    out = tmp_path / "graph"
    build_graph([Fact("a", "r", "b")], out)
    full = run(FULL, out)
    assert "what was there before is unchanged" in full.stdout, full.stderr
    assert keys(out) == {("a", "r", "b")}
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "graph"
    build_graph([Fact("a", "r", "b")], out)
    code = (
        "import sys; from graphs.build import add_facts; from graphs.facts import Fact\n"
        "for n in range(3): add_facts(sys.argv[1], [Fact(sys.argv[2], 'r', str(n))])"
    )
    work = [
        subprocess.Popen([sys.executable, "-c", code, str(out), name], cwd=ROOT) for name in "xyz"
    ]
    assert [process.wait(timeout=120) for process in work] == [0, 0, 0]
    assert len(keys(out)) == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(GraphError, match="make the folder writable"):
        build_graph(FACTS, tmp_path / "g")


def test_an_open_store_outlives_its_folder(tmp_path: Path) -> None:
    build_graph(FACTS, tmp_path / "g")
    opened = GraphStore.open(tmp_path / "g")
    shutil.rmtree(tmp_path / "g")
    assert opened.entity("radium").entity == "Radium"
    assert len(opened.neighbours("Radium").near) == 1
    assert opened.words.scores("polonium").max() > 0


def test_a_graph_for_a_run_is_cached_and_kept_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    file = tmp_path / "some facts.tsv"
    file.write_text("a\tr\tb\n", encoding="utf-8")
    out = graph_for(file)
    assert out.is_relative_to(graphs_home()) and is_graph(out)
    before = fingerprint(out)
    assert graph_for(file) == out and fingerprint(out) == before
    file.write_text("a\tr\tc\n", encoding="utf-8")
    assert keys(graph_for(file)) == {("a", "r", "c")}
    assert graph_for(out) == out, "a built graph stands for itself"
