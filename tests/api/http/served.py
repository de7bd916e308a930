"""A process of `ragwright serve` in a home of its own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
from redis import Redis

from api.jobs.embedded import running_url
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from tests.house.source import ROOT
from workflows.runs import RunOrder, prepare

NAP = """
name: nap
inputs: {rounds: {type: integer}}
state: {n: 0}
nodes: {count: {use: set, with: {values: {n: "${state.n + 1}"}}}}
edges:
  - {from: start, to: count}
  - {from: count, when: "state.n < inputs.rounds", to: count}
  - {from: count, to: end}
outputs: {n: "${state.n}"}
limits: {steps: 5000}
"""


class Served:
    """A process of `ragwright serve`; `url` is where it answers."""

    def __init__(self, home: Path, *arguments: str, **variables: str) -> None:
        self.home = home
        self.lines = home / f"log-{time.monotonic_ns()}"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RAGWRIGHT_")
        }
        environment |= {"RAGWRIGHT_HOME": str(home), "RAGWRIGHT_DRAIN": "3"}
        with self.lines.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "ragwright.py", "serve", "--port", "0", *arguments],
                env={**environment, "OMP_NUM_THREADS": "1", **variables},
                cwd=home,
                stdout=log,
                stderr=log,
            )
        self.url = ""

    def wait(self) -> None:
        """Return when it answers."""
        self.url = until(lambda: re.search(r"serving (http://\S+)", self.log()), self.log)[1]

    def log(self) -> str:
        return self.lines.read_text(encoding="utf-8")

    def client(self) -> httpx2.Client:
        key = (self.home / "api-key").read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def workers(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if child.cmdline()[-1:] == ["worker"]]
        return []

    def redis(self) -> list[psutil.Process]:
        """Its private server, which outlives a server that is killed."""
        url = running_url(self.home / "redis")
        if url is None:
            return []
        with Redis.from_url(url) as client:
            return [psutil.Process(client.info("server")["process_id"])]

    def submit(self, rounds: int) -> str:
        """Queue a run of a workflow without a model, for the tenant of the first key."""
        file = self.home / "nap.yaml"
        file.write_text(NAP, encoding="utf-8")
        manifest = prepare(RunOrder(str(file), {"rounds": rounds}, tenant="default"))
        url = running_url(self.home / "redis")

        async def queue() -> str:
            async with RedisQueue.open(Settings(redis_url=url)) as jobs:
                return (await jobs.submit(manifest, tenant="default")).id

        return asyncio.run(queue())


def until(probe: Callable[[], Any], said: Callable[[], str], seconds: float = 40.0) -> Any:
    """What the probe finds; fails with what was said."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
    return found


@contextmanager
def served(home: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    """A server that ends with the block, its workers and its Redis too."""
    found = Served(home, *arguments, **variables)
    try:
        found.wait()
        yield found
    finally:
        left = (
            psutil.Process(found.process.pid).children(True) if found.process.poll() is None else []
        )
        found.process.kill()
        found.process.wait()
        redis = [
            process
            for process in psutil.process_iter()
            if str(home) in " ".join(process_line(process))
        ]
        for process in (*left, *redis):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def process_line(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []
