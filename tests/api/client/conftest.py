"""A real server over a real Redis, with a real worker in a thread and some workflows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from api import Client, telemetry
from api.jobs.redis_queue import RedisQueue
from api.jobs.worker import Worker
from api.settings import Settings
from tests.api.http.conftest import home, redis_url, settings, site, tiny
from tests.api.http.site import Site

__all__ = ["home", "redis_url", "settings", "site", "tiny"]

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
  one: {use: interrupt, with: {ask: which?, choices: "${inputs.word}"}}
edges:
  - {from: start, to: one}
  - {from: one, to: end}
outputs: {answer: "${state.answer}"}
""",
    "approve": """
name: approve
nodes:
  one: {use: interrupt, with: {ask: go on?, choices: [yes, no]}, save: {answer: said}}
edges:
  - {from: start, to: one}
  - {from: one, to: end}
outputs: {answer: "${state.said}"}
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


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Site]:
    """The site, with workflows that were uploaded and a worker."""
    with Client(site.url, site.alpha) as client:
        for name, text in WORKFLOWS.items():
            assert client.workflows.upload(name, text)["name"] == name
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
            self.worker, self.loop = (
                Worker(queue, threads=2, traced=telemetry.traced),
                asyncio.get_running_loop(),
            )
            self.up.set()
            await self.worker.run()

    def __enter__(self) -> None:
        self.thread.start()
        assert self.up.wait(20)

    def __exit__(self, *raised: object) -> None:
        self.loop.call_soon_threadsafe(self.worker.drain)
        self.thread.join(30)
        assert not self.thread.is_alive()
