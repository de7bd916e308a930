"""Load for a server: `ragwright serve` in a process of its own, and requests sent on schedule."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

from tests.house.source import ROOT

STARTING = 60.0
"""Seconds that a server may take to listen."""
SERVING = re.compile(r"serving (http://\S+)")


@dataclass(frozen=True)
class Server:
    """A running `ragwright serve`: where, with which key, in which process."""

    url: str
    key: str
    pid: int


@contextmanager
def serve(home: Path, **settings: Any) -> Iterator[Server]:
    """The whole service on a free port; settings are variables RAGWRIGHT_..., in small letters."""
    given = {
        f"RAGWRIGHT_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in {
            "rate_per_minute": 10**7,
            "concurrency_per_key": 10**4,
            **settings,
        }.items()
    }
    environment = {**os.environ, "RAGWRIGHT_HOME": str(home), "OMP_NUM_THREADS": "1", **given}
    log = home / "serve.log"
    command = [sys.executable, "-m", "ragwright", "serve", "--embedded", "--port=0", "--workers=0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=out)
    try:
        yield Server(_url(process, log), (home / "api-key").read_text().strip(), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + STARTING
    while True:
        said = log.read_text(encoding="utf-8", errors="replace")
        if found := SERVING.search(said):
            return found[1]
        assert process.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.05)


class Line:
    """Requests over kept connections, with as little of a client's own work as can be."""

    def __init__(self, server: Server, path: str, body: Mapping[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._request = head.encode() + data
        self._address = urlsplit(server.url)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self) -> tuple[int, float]:
        """Status and seconds of one request."""
        began = time.perf_counter()
        reader, writer = self._kept() or await asyncio.open_connection(
            self._address.hostname, self._address.port
        )
        try:
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        except BaseException:
            writer.close()  # nobody else knows of it
            raise
        self._idle.append((reader, writer))
        return int(head.split()[1]), time.perf_counter() - began

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that the server has not closed for being idle."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()
        await asyncio.gather(*(one.wait_closed() for _, one in self._idle), return_exceptions=True)


@asynccontextmanager
async def line(server: Server, path: str, body: Mapping[str, Any]) -> AsyncIterator[Line]:
    """A line that is closed in the end."""
    made = Line(server, path, body)
    try:
        yield made
    finally:
        await made.close()


@dataclass
class Tally:
    """Seconds of requests by their status."""

    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        """Count one."""
        self.seconds.setdefault(status, []).append(seconds)

    @property
    def accepted(self) -> list[float]:
        """Those that were answered."""
        return self.seconds.get(200, [])

    @property
    def refused(self) -> list[float]:
        """Those that were refused for want of room."""
        return [*self.seconds.get(503, []), *self.seconds.get(429, [])]

    @property
    def other(self) -> set[int]:
        """Statuses that are neither."""
        return set(self.seconds) - {200, 429, 503}


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return quantiles(values, n=100, method="inclusive")[98]


async def one_by_one(line: Line, count: int) -> Tally:
    """So many requests, each after the answer of the last: an unloaded server."""
    tally = Tally()
    for _ in range(count):
        tally.add(*await line.send())
    return tally


async def closed_loop(line: Line, clients: int, seconds: float) -> float:
    """Answers a second that so many clients get, who ask again as soon as they are answered."""
    end, answered = time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            status, _ = await line.send()
            answered += status == 200

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return answered / (time.perf_counter() - began)


async def open_loop(line: Line, rate: float, seconds: float, seed: int = 0) -> Tally:
    """Requests at random moments, `rate` a second, whatever becomes of those before."""
    dice, tally = random.Random(seed), Tally()

    async def one() -> None:
        tally.add(*await line.send())

    due, end, sent = time.perf_counter(), time.perf_counter() + seconds, []
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent.append(asyncio.ensure_future(one()))
        due += dice.expovariate(rate)
    await asyncio.gather(*sent)
    return tally
