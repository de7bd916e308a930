"""Real servers for the queue: Valkey from its wheel, and Debian's Redis where it is installed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.jobs.embedded import EmbeddedServer
from api.settings import Settings


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """A server that all tests of the queue share, each under a namespace of its own."""
    binary = None
    if request.param == "redis":
        found = shutil.which("redis-server")
        if found is None:
            pytest.skip("Redis is not installed; `apt-get install redis-server` brings it")
        binary = Path(found)
    with EmbeddedServer(tmp_path_factory.mktemp(request.param), binary) as started:
        yield started


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for tests that do not depend on whose it is."""
    with EmbeddedServer(tmp_path_factory.mktemp("alone")) as started:
        yield started


@pytest.fixture
def settings(server: EmbeddedServer) -> Settings:
    """Settings of a namespace that is empty."""
    return Settings(redis_url=server.url, namespace=f"t{secrets.token_hex(4)}")
