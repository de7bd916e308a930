"""A real server over a real Redis, with a real worker in a thread and some workflows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import Client
from api.jobs.redis_queue import RedisQueue
from api.jobs.worker import Worker
from api.settings import Settings
from tests.api.http.conftest import home, redis_url, settings, site
from tests.api.http.site import Site
from workflows.errors import WorkflowInputError

__all__ = ["home", "redis_url", "settings", "site"]

WORKFLOWS = {
    "shout": """
name: shout
inputs: {word: {type: string}, times: {type: integer, default: 2, minimum: 1}}
state: {text: "", round: 0}
nodes:
  add:
    use: set
    with: {values: {text: "${state.text + inputs.word}", round: "${state.round + 1}"}}
edges:
  - {from: start, to: add}
  - {from: add, when: "state.round < inputs.times", to: add}
  - {from: add, to: end}
outputs: {answer: "${state.text}"}
limits: {steps: 10000}
""",
    "quote": """
name: quote
inputs: {word: {type: string}}
nodes:
  one: {use: workflow, with: {name: shout.yaml, inputs: {word: x, times: "${inputs.word}"}}}
edges:
  - {from: start, to: one}
  - {from: one, to: end}
outputs: {answer: "${state.outputs}"}
""",
    "clash": """
name: clash
nodes:
  one: {use: set, with: {values: {n: "${1 / 0}"}}}
edges:
  - {from: start, to: one}
  - {from: one, to: end}
outputs: {answer: "${state.n}"}
""",
}


class Shelf:
    """The workflows above, for every tenant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in WORKFLOWS.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")

    def workflow(self, tenant: str, name: str) -> Path:
        if name not in WORKFLOWS:
            raise WorkflowInputError(f"no workflow {name!r}")
        return self.folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def served(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, with workflows and a worker."""
    site.service.library = Shelf(tmp_path_factory.mktemp("shelf"))  # type: ignore[assignment]
    with working(site.settings):
        yield site


@pytest.fixture
def client(served: Site) -> Iterator[Client]:
    with Client(served.url, served.alpha) as client:
        yield client


class working:
    """A worker that runs jobs while the block lasts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.up = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._work()))

    async def _work(self) -> None:
        async with RedisQueue.open(self.settings) as queue:
            self.worker, self.loop = Worker(queue, threads=2), asyncio.get_running_loop()
            self.up.set()
            await self.worker.run()

    def __enter__(self) -> None:
        self.thread.start()
        assert self.up.wait(20)

    def __exit__(self, *raised: object) -> None:
        self.loop.call_soon_threadsafe(self.worker.drain)
        self.thread.join(30)
        assert not self.thread.is_alive()
