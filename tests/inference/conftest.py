"""Engines over tiny checkpoints, opened once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from tests.inference.tiny import checkpoint


def open_engine(folder: Any, **options: Any) -> NativeEngine:
    return NativeEngine.from_config(
        NativeConfig(model=str(folder), dtype="float32", device="cpu", **options)
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., NativeEngine]]:
    """Opens (and remembers) the engine of a tiny checkpoint with the given options."""
    engines: dict[str, NativeEngine] = {}

    def get(kind: str = "llama", prefix_cache_bytes: int = 2**20, **options: Any) -> NativeEngine:
        key = repr((kind, prefix_cache_bytes, sorted(options.items())))
        if key not in engines:
            folder = checkpoint(tmp_path_factory.mktemp(kind), kind, **options)
            engines[key] = open_engine(folder, prefix_cache_bytes=prefix_cache_bytes)
        return engines[key]

    yield get
    for engine in engines.values():
        engine.close()
