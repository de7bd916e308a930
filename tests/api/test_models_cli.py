"""`ragwright models`: the catalogue, the cache, and errors on one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.api.conftest import Ragwright
from tests.inference.tiny import checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(ragwright: Ragwright, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`ragwright models ...` with an empty cache."""
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    return partial(ragwright, "models")


def test_list_of_an_empty_cache(run: Run, tmp_path: Path) -> None:
    status, out, err = run("list", "--json")
    models = {m["name"]: m for m in json.loads(out)["models"]}
    assert (status, err, set(models)) == (0, "", {"default", "minilm"})
    for model in models.values():
        assert set(model) == {"name", "description", "license", "cached", "size", "path"}
        assert (model["cached"], model["size"], model["path"]) == (False, None, None)
        assert model["license"] == "Apache-2.0"
    assert not (tmp_path / "home").exists()  # looking creates nothing
    status, out, _ = run("list")
    assert status == 0 and out.count("not cached") == 2


def test_pull_of_a_path(run: Run, tmp_path: Path) -> None:
    folder = str(checkpoint(tmp_path / "model"))
    assert run("pull", folder)[:2] == (0, folder + "\n")
    assert json.loads(run("pull", folder, "--json")[1])["path"] == folder


def test_calibrate_measures_and_keeps_the_result(run: Run, tmp_path: Path) -> None:
    folder = str(checkpoint(tmp_path / "model", endless=True))
    status, out, err = run("calibrate", folder, "--dtype", "float32", "--json")
    found = json.loads(out)
    assert (status, err, found["model"]) == (0, "", folder)
    assert found["knee"] in [forward["tokens"] for forward in found["forwards"]]
    assert found["per_token"] > 0 and found["r_squared"] <= 1
    assert set(found["held_out"]["fitted"]) < {row["tokens"] for row in found["prefill"]}
    stored = Path(found["path"])
    assert stored.parent == tmp_path / "home" / "calibrations"
    assert json.loads(stored.read_text())["setting"] == found["setting"]
    status, out, _ = run("calibrate", folder, "--dtype", "float32")
    assert status == 0 and out.endswith(f"{stored}\n")
    for part in ("(the knee)", "F(16) =", "g = ", "R^2 = ", "fitted to 16, 64, predicts 32, 128"):
        assert part in out
    short = str(checkpoint(tmp_path / "short", context=64))
    status, out, err = run("calibrate", short)
    assert (status, out) == (2, "") and err.startswith("ragwright: model ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minilmm", "did you mean 'minilm'"),
        ("{tmp}", "has no config.json"),
        ("{tmp}/file.gguf", "is a file; give the folder"),
    ],
)
def test_bad_names_are_one_line(run: Run, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    status, out, err = run("pull", name.replace("{tmp}", str(tmp_path)))
    assert (status, out) == (2, "")
    assert err.startswith("ragwright: ") and err.count("\n") == 1 and message in err


@pytest.mark.default_model
def test_the_default_model_is_listed_as_cached(
    default_engine: object, ragwright: Ragwright
) -> None:
    status, out, _ = ragwright("models", "pull", "default", "--json")
    assert status == 0
    entry = json.loads(out)
    assert entry["cached"] and entry["size"] > 500e6
    assert (Path(entry["path"]) / "model.safetensors").is_file()
