"""A site that serves a tiny model, and OpenAI's own client to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import openai
import pytest

from api.settings import Settings
from inference.models import models_home
from inference.native.engine import NativeEngine
from tests.api.http.site import Site, running
from tests.inference.tiny import checkpoint


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends by itself and writes ASCII."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    return checkpoint(folder, context=512, endless=True, ascii_only=True)


@pytest.fixture(scope="package")
def package_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RAGWRIGHT_HOME of these tests, with the models that are here already."""
    models, folder = models_home(), tmp_path_factory.mktemp("home")
    (folder / "models").symlink_to(models, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGWRIGHT_HOME", str(folder))
        yield folder


@pytest.fixture(scope="package")
def served_settings(redis_url: str, package_home: Path, model: Path) -> Settings:
    """Settings under which the tiny model is served."""
    return Settings(
        redis_url=redis_url,
        namespace=f"t{secrets.token_hex(6)}",
        rate_per_minute=1_000_000,
        concurrency_per_key=1_000,
        engine_running=4,
        drain=5.0,
        model=str(model),
        engine_options={"dtype": "float32", "device": "cpu"},
    )


@pytest.fixture(scope="package")
def served(served_settings: Settings) -> Iterator[Site]:
    """The application over the tiny model."""
    with running(served_settings) as site:
        yield site


@pytest.fixture(scope="package")
def engine(served: Site) -> NativeEngine:
    """The engine behind the site, opened."""
    from api.http.openai.served import engine_of

    found = served.do(engine_of(served.service))
    assert isinstance(found, NativeEngine)
    return found


@pytest.fixture
def client(served: Site) -> Iterator[openai.OpenAI]:
    """OpenAI's client with a key of tenant alpha; it never tries again."""
    with httpx2.Client(trust_env=False) as http:
        yield openai.OpenAI(
            base_url=f"{served.url}/v1", api_key=served.alpha, max_retries=0, http_client=http
        )


@asynccontextmanager
async def asynchronous(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    """The asynchronous client."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        yield openai.AsyncOpenAI(
            base_url=f"{site.url}/v1", api_key=site.alpha, max_retries=0, http_client=http
        )
