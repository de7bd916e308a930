"""Building, extending, replacing and refusing index folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval.cache import index_for_docs
from retrieval.documents import Document
from retrieval.embedding import Embedder
from retrieval.errors import BadIndex, RetrievalInputError
from retrieval.index import ChunkSettings, add_documents, build_index, open_index
from retrieval.table import RETRIEVERS, retriever_config
from tests.retrieval.conftest import documents


def answer(index: Path, query: str = "who discovered polonium") -> list[tuple[str, float]]:
    """Ids and scores of the best three hits."""
    (hits,) = retriever_config("hybrid").open(index).search([query], 3)
    return [(hit.passage.id, hit.score) for hit in hits]


def content(index: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {
        path.relative_to(index).as_posix(): path.read_bytes()
        for path in sorted(index.rglob("*"))
        if path.is_file()
    }


def folder(tmp_path: Path, **files: str) -> Path:
    """A docs folder of text files."""
    docs = tmp_path / "docs"
    docs.mkdir(exist_ok=True)
    for name, text in files.items():
        (docs / f"{name}.txt").write_text(text, encoding="utf-8")
    return docs


@pytest.fixture
def built(index_path: Path, tmp_path: Path) -> Path:
    """A private copy of the index of the corpus."""
    return Path(shutil.copytree(index_path, tmp_path / "index"))


def test_two_builds_of_the_same_documents_are_the_same_bytes(tmp_path: Path) -> None:
    build_index(documents(), tmp_path / "a")
    build_index(documents(), tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_manifest_names_every_file(built: Path) -> None:
    manifest = open_index(built).manifest
    files = {f"{manifest.generation}/{name}" for name in manifest.files}
    assert set(content(built)) == {"manifest.json"} | files
    assert (manifest.documents, manifest.passages) == (len(documents()), len(open_index(built)))


def test_nothing_written_is_a_pickle(built: Path) -> None:
    for name, data in content(built).items():
        if name.endswith(".npy"):
            assert np.load(built / name, allow_pickle=False).dtype.hasobject is False
        else:
            data.decode("utf-8")


def test_a_second_build_embeds_only_what_changed(tmp_path: Path) -> None:
    docs = folder(tmp_path, a="Alpha is first.", b="Beta is second.", c="Gamma is third.")
    first = build_index(docs, tmp_path / "i")
    assert (first.embedded, first.reused, first.removed) == (3, 0, 0)
    again = build_index(docs, tmp_path / "i")
    assert (again.embedded, again.reused, again.removed) == (0, 3, 0)
    folder(tmp_path, b="Beta was changed.", d="Delta is new.")
    (docs / "c.txt").unlink()
    third = build_index(docs, tmp_path / "i")
    assert (third.documents, third.embedded, third.reused, third.removed) == (3, 2, 1, 1)
    build_index(docs, tmp_path / "fresh")
    assert content(tmp_path / "i").keys() == content(tmp_path / "fresh").keys()
    one, two = open_index(tmp_path / "i"), open_index(tmp_path / "fresh")
    assert [one.passage(row) for row in range(3)] == [two.passage(row) for row in range(3)]
    np.testing.assert_allclose(one.vectors, two.vectors, atol=2e-6)


def test_adding_replaces_by_id_and_keeps_the_others(built: Path) -> None:
    old = documents()
    changed = replace(old[0], text="Marie Curie kept bees.")
    report = add_documents(built, [changed, old[1], Document("new", "N", "x", "Bees make honey.")])
    assert (report.embedded, report.documents, report.removed) == (2, len(old) + 1, 0)
    assert {name for name, _ in answer(built, "bees")} >= {"curie#0", "new#0"}
    index = open_index(built)
    passages = [index.passage(row) for row in range(len(index))]
    assert not any("polonium" in p.text for p in passages)
    expected = {d.id for d in old} | {"new"}
    assert {p.document_id for p in passages} == expected
    assert {p.id for p in passages if index.row(p.id) is None} == set()


def test_adding_equals_building_at_once(tmp_path: Path) -> None:
    whole = documents()
    build_index(whole, tmp_path / "once")
    build_index(whole[:4], tmp_path / "twice")
    add_documents(tmp_path / "twice", whole[4:])
    for query in ("polonium in Paris", "the ship left the harbour", "peas"):
        assert (
            dict(answer(tmp_path / "once", query)).keys()
            == dict(answer(tmp_path / "twice", query)).keys()
        )


def test_changed_metadata_is_stored_without_embedding(built: Path) -> None:
    report = add_documents(built, [replace(documents()[0], metadata={"field": "bees"})])
    assert report.embedded == 0
    (hits,) = retriever_config("bm25").open(built).search(["Marie"], 5, where={"field": "bees"})
    assert [hit.passage.document_id for hit in hits] == ["curie"]


def test_other_chunk_settings_embed_again(built: Path) -> None:
    size = ChunkSettings(tokens=64, overlap=8)
    report = build_index(documents(), built, settings=size)
    assert report.reused == 0
    assert open_index(built).manifest.chunking == size
    assert add_documents(built, documents()[:1]).embedded == 0


def flip(file: Path, place: int) -> None:
    """Change one byte."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


FILES = [
    "manifest.json",
    "bm25.data.npy",
    "bm25.indices.npy",
    "bm25.indptr.npy",
    "bm25.vocabulary.json",
    "documents.jsonl",
    "spans.npy",
    "texts.txt",
    "vectors.npy",
]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(built: Path, name: str, damage: str) -> None:
    file = next(built.rglob(name))
    if damage == "flip":
        flip(file, file.stat().st_size // 2)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    for retriever in RETRIEVERS:
        with pytest.raises(BadIndex, match=name) as caught:
            retriever_config(retriever).open(built)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadIndex, match=name):
        add_documents(built, documents()[:1])


@pytest.mark.parametrize("name", ["manifest.json", "vectors.npy"])
def test_a_build_mends_a_damaged_index(built: Path, name: str) -> None:
    before = answer(built)
    flip(next(built.rglob(name)), 200)
    build_index(documents(), built)
    assert answer(built) == before


def test_every_byte_of_the_manifest_counts(built: Path) -> None:
    manifest = built / "manifest.json"
    original = manifest.read_bytes()
    for place in range(0, len(original), 7):
        flip(manifest, place)
        with pytest.raises(BadIndex, match=r"manifest\.json"):
            open_index(built)
        manifest.write_bytes(original)
    open_index(built)


def test_an_index_of_another_model_is_refused(
    built: Path, tmp_path: Path, embedder: Embedder
) -> None:
    other = tmp_path / "model"
    shutil.copytree(embedder.folder, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "note": "other"}), encoding="utf-8")
    build_index(documents(), built, embedder=Embedder(other, "other"))
    for name in ("dense", "hybrid"):
        with pytest.raises(BadIndex, match=r"vectors\.npy: made by the model other"):
            retriever_config(name).open(built)
    with pytest.raises(BadIndex, match="made by the model other"):
        add_documents(built, documents())
    assert build_index(documents(), built).reused == 0
    assert answer(built)[0][0] == "curie#0"


def test_an_unknown_format_version_is_refused(built: Path) -> None:
    manifest = open_index(built).manifest.model_copy(update={"version": 99})
    (built / "manifest.json").write_bytes(manifest.encode())
    with pytest.raises(BadIndex, match="format version 99, this program reads 2"):
        open_index(built)


@pytest.mark.parametrize("generation", ["../../etc", "..", "/etc"])
def test_a_manifest_cannot_point_outside(built: Path, generation: str) -> None:
    manifest = open_index(built).manifest.model_copy(update={"generation": generation})
    (built / "manifest.json").write_bytes(manifest.encode())
    with pytest.raises(BadIndex, match="leaves the index"):
        open_index(built)


def test_paths_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(BadIndex, match="no such index folder"):
        open_index(tmp_path / "missing")
    with pytest.raises(BadIndex, match=r"not an index, it has no manifest\.json"):
        open_index(tmp_path)


def test_a_build_refuses_a_folder_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear", encoding="utf-8")
    for out in (tmp_path / "home", tmp_path / "home" / "letter"):
        with pytest.raises(RetrievalInputError, match="exists and is not an index"):
            build_index(documents(), out)
    assert content(tmp_path / "home") == {"letter": b"dear"}
    docs = folder(tmp_path, a="text")
    with pytest.raises(RetrievalInputError, match="among the documents"):
        build_index(docs, docs / "index")


def test_bad_documents_change_nothing(built: Path, tmp_path: Path) -> None:
    docs = folder(tmp_path, good="fine")
    (docs / "bad.txt").write_bytes(b"\xff")
    before = content(built)
    for out in (built, tmp_path / "new"):
        with pytest.raises(RetrievalInputError, match=r"bad\.txt: not UTF-8"):
            build_index(docs, out)
    with pytest.raises(RetrievalInputError, match=r"bad\.txt: not UTF-8"):
        add_documents(built, docs)
    with pytest.raises(RetrievalInputError, match="'x' appears twice"):
        build_index([Document("x", "", "s", "a"), Document("x", "", "s", "b")], built)
    with pytest.raises(RetrievalInputError, match="no documents were given"):
        build_index([], built)
    assert content(built) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["docs", "index"]


def test_an_open_index_outlives_its_replacement(built: Path) -> None:
    retriever = retriever_config("bm25").open(built)
    dense = retriever_config("dense").open(built)
    build_index([Document("only", "", "x", "Nothing but this.")], built)
    (hits,) = retriever.search(["polonium"], 1)
    assert hits[0].passage.id == "curie#0"
    assert dense.search(["polonium"], 1)[0][0].passage.id == "curie#0"
    assert answer(built)[0][0] == "only#0"


def test_documents_of_a_run_are_indexed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder: Embedder
) -> None:
    monkeypatch.setattr("retrieval.cache.models_home", lambda: tmp_path / "cache" / "models")
    docs = folder(tmp_path, a="Alpha is first.", b="Beta is second.")
    stages: list[str] = []

    def index() -> Path:
        stages.clear()
        return index_for_docs(docs, lambda stage, done, total: stages.append(stage))

    out = index()
    assert out.parent == tmp_path / "cache" / "indexes"
    assert "embed" in stages
    assert index() == out
    assert stages == []
    (docs / "a.txt").write_text("Alpha has changed now.", encoding="utf-8")
    assert index() == out
    assert answer(out, "changed")[0][0] == "a.txt#0"
    flip(next(out.rglob("vectors.npy")), 200)
    assert index() == out
    assert answer(out, "changed")[0][0] == "a.txt#0"
    (docs / "a.txt").write_bytes(b"\xff")
    with pytest.raises(RetrievalInputError, match="not UTF-8"):
        index()
