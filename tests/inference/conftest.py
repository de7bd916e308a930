"""Engines over tiny checkpoints, opened once per session, and over a server that misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.engine import NativeConfig, OpenAIConfig
from inference.native.engine import NativeEngine
from inference.openai.engine import OpenAIEngine
from tests.inference.misbehaving import KEY, Naughty, misbehaving
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


@pytest.fixture
def server() -> Iterator[Naughty]:
    with misbehaving() as naughty:
        yield naughty


@pytest.fixture
def opened(server: Naughty, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Open the engine on the server, with a key; every engine is closed in the end."""
    monkeypatch.setenv("RAGWRIGHT_OPENAI_API_KEY", KEY)
    engines: list[OpenAIEngine] = []

    def open_engine(**options: Any) -> OpenAIEngine:
        config = OpenAIConfig(
            **{"base_url": server.url, "model": "small", "context_length": 64, **options}
        )
        engines.append(OpenAIEngine.from_config(config))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()
