"""The HTTP API on the default model: what the way through it costs, and what it does under load.

The peer is the engine called directly, in the same run and in a process of its own, as the server
is. Where its environment is, vLLM's server gets the same requests over the same client.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from inference import Engine, Message, Request, SamplingParams
from inference.engine import NativeConfig, VLLMConfig
from inference.errors import InferenceInputError, UnknownName
from inference.models import models_home
from inference.suggest import nearest
from inference.vllm.engine import VLLMEngine
from tests.bench.figures import Figure, against, alone, pairs
from tests.bench.peers import absent
from tests.load import Server, closed_loop, line, one_by_one, open_loop, p99, serve

DIRECT = "engine called directly"
VLLM = "vLLM's server for CPU"
CHAT = "/v1/chat/completions"
TOKENS = 32
CLIENTS = 16
TIMES, SECONDS = 5, 30.0
"""Overload: times the capacity, and for how long."""
DROPPED = 200
TURNS = [{"role": "user", "content": "Tell me about a river that runs north."}]
BODY = {"model": "default", "messages": TURNS, "max_tokens": TOKENS, "temperature": 0}


def run(*, n: int = 5, only: Collection[str] = ()) -> list[Figure]:
    """The rows named in `only`, or all; `n` measurements of each that is a pair."""
    for name in only:
        if name not in ROWS:
            raise UnknownName(f"unknown row {name!r} of benchmark 'api'; {nearest(name, ROWS)}")
    figures: list[Figure] = []
    with Bench(n) as bench:
        for name, row in ROWS.items():
            if not only or name in only:
                began = time.perf_counter()
                figures += row(bench)
                print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return figures


class Bench(ExitStack):
    """What rows share, opened by the first that needs it and closed at the end."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    @cached_property
    def server(self) -> Server:
        """Ours, on the default model."""
        home = Path(self.enter_context(tempfile.TemporaryDirectory()))
        (home / "models").symlink_to(models_home(), target_is_directory=True)
        server = self.enter_context(serve(home))
        asyncio.run(_send(server, 1))  # loads the model
        return server

    @cached_property
    def engine(self) -> Engine:
        """The same engine in this process."""
        engine = NativeConfig().open()
        self.callback(engine.close)
        return engine

    @cached_property
    def vllm(self) -> Server | None:
        """vLLM's server on the same model."""
        try:
            engine = VLLMConfig().open()
        except InferenceInputError as error:
            absent(error)
            return None
        self.callback(engine.close)
        if not isinstance(engine, VLLMEngine):  # vLLM in this process, where no server is
            return None
        url = urlsplit(engine.server.url)
        return Server(f"{url.scheme}://{url.netloc}", engine.server.key, engine.server.pid)

    def direct(self, count: int) -> float:
        """Seconds of so many requests at once, without HTTP."""
        sampling = SamplingParams(max_tokens=TOKENS)
        messages = [Message("user", TURNS[0]["content"])]
        began = time.perf_counter()
        self.engine.generate([Request(messages=messages, sampling=sampling) for _ in range(count)])
        return time.perf_counter() - began


async def _send(server: Server, count: int, body: dict[str, object] = BODY) -> float:
    """Seconds until so many requests, sent at once, are answered."""
    async with line(server, CHAT, body) as to:
        began = time.perf_counter()
        found = await asyncio.gather(*(to.send() for _ in range(count)))
        assert {status for status, _ in found} == {200}, found
        return time.perf_counter() - began


def _latency(bench: Bench) -> list[Figure]:
    measured = pairs(lambda: asyncio.run(_send(bench.server, 1)), lambda: bench.direct(1), bench.n)
    return [against("chat_latency_overhead", "s", DIRECT, measured)]


def _throughput(bench: Bench) -> list[Figure]:
    def rate(seconds: float) -> float:
        return CLIENTS * TOKENS / seconds

    def ours() -> float:
        return rate(asyncio.run(_send(bench.server, CLIENTS)))

    name, better = "chat_throughput_16", False
    measured = pairs(ours, lambda: rate(bench.direct(CLIENTS)), bench.n)
    figures = [against(name, "tokens/s", DIRECT, measured, lower_is_better=better)]
    peer = bench.vllm
    if peer is None:
        return [*figures, replace(alone(f"{name}_vllm", "tokens/s", [0.0], VLLM), value=None)]
    with httpx2.Client(headers={"Authorization": f"Bearer {peer.key}"}, trust_env=False) as http:
        model = http.get(f"{peer.url}/v1/models").json()["data"][0]["id"]
    body = {**BODY, "model": model}
    measured = pairs(ours, lambda: rate(asyncio.run(_send(peer, CLIENTS, body))), bench.n)
    return [*figures, against(f"{name}_vllm", "tokens/s", VLLM, measured, lower_is_better=better)]


def _first_token(bench: Bench) -> list[Figure]:
    request = Request(
        messages=[Message("user", TURNS[0]["content"])], sampling=SamplingParams(max_tokens=TOKENS)
    )

    async def direct() -> float:
        began = time.perf_counter()
        async for chunk in bench.engine.stream(replace(request, id=f"{began}")):
            if chunk.text:
                return time.perf_counter() - began
        return time.perf_counter() - began

    def ours() -> float:
        headers = {"Authorization": f"Bearer {bench.server.key}"}
        began = time.perf_counter()
        body = {**BODY, "stream": True}
        with (
            httpx2.Client(headers=headers, trust_env=False, timeout=60) as http,
            http.stream("POST", bench.server.url + CHAT, json=body) as answer,
        ):
            for said in answer.iter_lines():
                if '"content":' in said and '"content":""' not in said:
                    return time.perf_counter() - began
        raise AssertionError("the stream brought no text")

    return [against("ttft", "s", DIRECT, pairs(ours, lambda: asyncio.run(direct()), bench.n))]


def _overload(bench: Bench) -> list[Figure]:
    """Short answers, so that there are many; the first seconds, in which the gate learns what the
    overload costs and connections are opened, are not counted."""

    async def measure() -> tuple[list[float], list[float], list[float]]:
        async with line(server, CHAT, {**BODY, "max_tokens": 4}) as to:
            unloaded = await one_by_one(to, 40)
            capacity = await closed_loop(to, CLIENTS, 5.0)
            await open_loop(to, TIMES * capacity, 5.0, seed=1)
            loaded = await open_loop(to, TIMES * capacity, SECONDS)
        return unloaded.accepted, loaded.accepted, loaded.refused

    server = bench.server
    unloaded, accepted, refused = asyncio.run(measure())
    ratio = p99(accepted) / p99(unloaded)
    return [
        replace(alone("refusal_p99", "s", [p99(refused)]), n=len(refused)),
        replace(alone("accepted_p99_ratio", "times unloaded", [ratio]), n=len(accepted)),
    ]


def _disconnects(bench: Bench) -> list[Figure]:
    server = bench.server
    headers = {"Authorization": f"Bearer {server.key}"}
    dice = random.Random(0)

    async def drop(to: httpx2.AsyncClient) -> None:
        body = {**BODY, "stream": dice.random() < 0.5}
        try:
            async with asyncio.timeout(dice.uniform(0, 0.5)):
                await to.post(server.url + CHAT, json=body)
        except (TimeoutError, httpx2.TransportError):
            return

    async def all_of_them() -> None:
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as to:
            for _ in range(DROPPED // CLIENTS):
                await asyncio.gather(*(drop(to) for _ in range(CLIENTS)))

    asyncio.run(all_of_them())
    deadline = time.monotonic() + 10
    while (left := _at_work(server)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [replace(alone("disconnects_leaked", "requests", [left]), n=DROPPED)]


def _at_work(server: Server) -> float:
    """What the server says is at work or waits in front of its engine."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx2.Client(headers=headers, trust_env=False) as http:
        told = http.get(f"{server.url}/metrics").text.splitlines()
    rows = [row for row in told if row.startswith("ragwright_engine{")]
    return sum(float(row.split()[1]) for row in rows if '"running"' in row or '"waiting"' in row)


ROWS: dict[str, Callable[[Bench], list[Figure]]] = {
    "chat_latency_overhead": _latency,
    "chat_throughput_16": _throughput,
    "ttft": _first_token,
    "overload": _overload,
    "disconnects": _disconnects,
}
