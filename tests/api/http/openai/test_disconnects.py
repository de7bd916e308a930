"""Clients that leave at any moment leave nothing behind: no work, blocks, tasks or places."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from api.http.openai.served import engine_of
from api.settings import Settings
from inference.native.engine import NativeEngine
from tests.api.http.site import Site, running
from tests.servers import until

CONNECTIONS = 500
AT_ONCE = 40
TURNS = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def roomy(served_settings: Settings) -> Iterator[Site]:
    """A site that lets everybody wait, so that clients also leave the queue."""
    patient = {"engine_running": 8, "engine_waiting": 64, "engine_slowdown": 100.0}
    with running(served_settings.model_copy(update=patient)) as site:
        yield site


def _request(site: Site, dice: random.Random) -> bytes:
    """A request on the wire, of a random kind."""
    body: dict[str, Any] = {
        "model": "default",
        "max_tokens": dice.choice([1, 8, 40]),
        "stream": dice.random() < 0.6,
        "n": dice.choice([1, 1, 3]),
        "seed": dice.randrange(2**31),
    }
    if dice.random() < 0.6:
        path = "/v1/chat/completions"
        body["messages"] = TURNS
        body["logprobs"] = dice.random() < 0.2
    else:
        path = "/v1/completions"
        body["prompt"] = ["fox " * dice.choice([1, 60])] * dice.choice([1, 2])
        if not body["stream"] and dice.random() < 0.3:
            body["prompt_logprobs"] = 0
    return _wire(site, path, body)


def _wire(site: Site, path: str, body: dict[str, Any]) -> bytes:
    """A request as it goes over the line."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.alpha}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _drop(site: Site, dice: random.Random, seen: Counter[str]) -> None:
    """One connection, cut off somewhere."""
    address = urlsplit(site.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    request = _request(site, dice)
    moment = dice.choice(["sending", "sent", "waiting", "reading", "reading", "end"])
    try:
        if moment == "sending":
            writer.write(request[: dice.randrange(1, len(request))])
            await writer.drain()
        else:
            writer.write(request)
            await writer.drain()
        if moment == "waiting":
            await asyncio.sleep(dice.uniform(0, 0.3))
        elif moment == "reading":
            await reader.read(dice.randrange(1, 2000))
        elif moment == "end":
            await _to_the_end(reader, dice)
        seen[moment] += 1
    finally:
        if dice.random() < 0.5:
            writer.transport.abort()  # a reset
        else:
            writer.close()


async def _to_the_end(reader: asyncio.StreamReader, dice: random.Random) -> None:
    """Read up to the last few bytes of the answer, or to the last."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"content-length" in head.lower():
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(max(length - dice.choice([0, 1, 5]), 0))
    else:
        await reader.readuntil(dice.choice([b"[DONE]", b"0\r\n\r\n", b'"usage"', b"data:"]))


async def _all(site: Site) -> Counter[str]:
    seen, slots = Counter[str](), asyncio.Semaphore(AT_ONCE)

    async def one(at: int) -> None:
        async with slots:
            try:
                await asyncio.wait_for(_drop(site, random.Random(at), seen), 30)
            except (asyncio.IncompleteReadError, ConnectionError):
                seen["broken off"] += 1

    await asyncio.gather(*(one(at) for at in range(CONNECTIONS)))
    return seen


def _tasks(site: Site) -> Counter[str]:
    async def found() -> Counter[str]:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)

    return site.do(found())


def _requests() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "request"]


def test_disconnects_cost_nothing(roomy: Site) -> None:
    service = roomy.service
    engine = roomy.do(engine_of(service))
    assert isinstance(engine, NativeEngine)
    blocks = engine._core().blocks
    engine.forget_prefixes()
    free, tasks = blocks.free, _tasks(roomy)

    seen = asyncio.run(_all(roomy))
    assert set(seen) >= {"sending", "sent", "waiting", "reading", "end"}
    assert sum(seen.values()) == CONNECTIONS

    assert until(lambda: service.in_flight == 0), f"{service.in_flight} requests go on"
    assert until(lambda: not _requests())
    engine.forget_prefixes()
    assert (service.gate.running, service.gate.waiting) == (0, 0)
    assert service.gate.accepted > CONNECTIONS / 3, "most got as far as the engine"
    assert not engine._admission().running._jobs
    assert not engine._core()._tasks
    assert (blocks.used, blocks.reserved, blocks.free) == (0, 0, free)
    assert not blocks._refs and not blocks.idle
    assert until(lambda: _tasks(roomy) == tasks), _tasks(roomy) - tasks
    assert not any(lock.locked() for lock in service.pool._locks.values())
    assert service.metrics.in_flight._value.get() == 0

    with openai.OpenAI(base_url=f"{roomy.url}/v1", api_key=roomy.alpha) as client:
        answer = client.chat.completions.create(
            model="default",
            messages=TURNS,
            max_tokens=4,  # type: ignore[arg-type]
        )
    assert answer.usage is not None and answer.usage.completion_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_stops_within_a_step_or_so(stream: bool, roomy: Site) -> None:
    engine = roomy.do(engine_of(roomy.service))
    assert isinstance(engine, NativeEngine)
    running_now = engine._admission().running._jobs

    async def leave() -> None:
        address = urlsplit(roomy.url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        # Some 30,000 tokens, which take far longer than the seconds that are waited below.
        body = {"model": "default", "messages": TURNS, "stream": stream, "n": 64}
        writer.write(_wire(roomy, "/v1/chat/completions", body))
        async with asyncio.timeout(10):
            while not running_now:
                await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()

    for _ in range(3):
        asyncio.run(leave())
        assert until(lambda: not running_now and not roomy.service.gate.running, 3)
