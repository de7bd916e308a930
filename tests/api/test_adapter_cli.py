"""`ragwright generate --adapter FOLDER`: what is written changes, and bad folders are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from inference.adapters.lora import Adapter
from inference.adapters.shape import Shape
from tests.api.conftest import Ragwright
from tests.inference.tiny import checkpoint, network

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"), endless=True)


@pytest.fixture(scope="module")
def lamps(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two adapters."""
    shape, out = Shape.of(network(str(model))), tmp_path_factory.mktemp("adapters")
    rows, width = shape.sizes["o_proj"]
    for seed, name in enumerate(("lamp", "oil")):
        torch.manual_seed(seed)
        pairs = {(1, "o_proj"): (torch.randn(2, width), torch.randn(rows, 2))}
        Adapter.from_tensors(name, pairs, 0.5, shape).save_peft(out / name)
    return [out / "lamp", out / "oil"]


@pytest.fixture
def run(ragwright: Ragwright, model: Path) -> Run:
    options = ("--model", model, "--dtype", "float32", "--max-tokens", "12", "--json")
    return partial(ragwright, "generate", "fox", *options)


def test_adapters_change_what_is_written(run: Run, lamps: list[Path]) -> None:
    lamp, oil = lamps
    texts = []
    for arguments in ((), (lamp,), (oil,), (lamp, oil), (oil, lamp)):
        status, out, err = run(*(part for one in arguments for part in ("--adapter", one)))
        assert status == 0, err
        texts.append(json.loads(out)["results"][0]["text"])
    assert len(set(texts[:4])) == 4 and texts[3] == texts[4]


def test_bad_folders_are_refused_on_one_line(run: Run, lamps: list[Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    twin = tmp_path / "lamp"
    twin.mkdir()
    for folders, says in (
        ((tmp_path / "none",), "there is no such folder"),
        ((empty,), "adapter_config.json"),
        ((lamps[0], twin), "is called 'lamp' too"),
    ):
        status, out, err = run(*(part for one in folders for part in ("--adapter", one)))
        assert (status, out) == (2, "")
        assert err.startswith("ragwright: ") and says in err and err.count("\n") == 1
