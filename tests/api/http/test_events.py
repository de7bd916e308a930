"""Events of a run as a stream: each exactly once, whoever hangs up."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from api.http.sse import frames
from api.jobs.errors import QueueUnavailable
from api.jobs.job import JobEvent
from tests.api.http.labour import Labour
from tests.api.http.site import Site
from tests.api.http.test_runs import error_of, submit


@dataclass
class Event:
    """What a reader makes of one block of the stream."""

    id: str
    name: str
    data: Any


def read(lines: Iterator[str]) -> Iterator[Event]:
    """Events of a stream, by the rules of server-sent events."""
    fields: dict[str, str] = {}
    for line in lines:
        if line == "":
            if "data" in fields:
                yield Event(
                    fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])
                )
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


def follow(client: httpx2.Client, run: str, after: str | None = None) -> Iterator[Event]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with client.stream("GET", f"/v1/runs/{run}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield from read(answer.iter_lines())


def test_the_whole_story(site: Site) -> None:
    with site.client(site.alpha) as client:
        run = submit(client)["id"]
        labour = Labour(site, run)
        labour.tell({"type": "run_started", "text": "a\nb\u2028c\r\x85"}, {"type": "step", "n": 1})
        labour.finish(outputs={})
        events = list(follow(client, run))
    names = [event.name for event in events]
    assert names == ["job", "job", "run_started", "step", "job", "end"]
    assert events[2].data["text"] == "a\nb\u2028c\r\x85"
    assert events[-1].data == {"state": "completed"} and events[-1].id == ""
    assert len({event.id for event in events}) == len(events)


def test_who_comes_back_misses_nothing_and_hears_nothing_twice(site: Site) -> None:
    with site.client(site.alpha) as client:
        run = submit(client)["id"]
        labour = Labour(site, run)

        def work() -> None:
            for number in range(60):
                labour.tell({"type": "step", "n": number})
                time.sleep(0.01)
            labour.finish()

        worker = threading.Thread(target=work)
        worker.start()
        heard: list[Event] = []
        readers = 0
        while not heard or heard[-1].name != "end":
            readers += 1
            for count, event in enumerate(follow(client, run, heard[-1].id if heard else None)):
                heard.append(event)
                if count == 6:
                    break
        worker.join()
    assert readers > 5
    assert [event.data["n"] for event in heard if event.name == "step"] == list(range(60))
    assert sum(event.name == "job" for event in heard) == 3


def test_a_reader_who_leaves_is_forgotten(site: Site) -> None:
    async def held() -> tuple[int, int]:
        clients = await site.service.redis.client_list()
        return len(asyncio.all_tasks()), sum("cmd=xread" in str(row) for row in clients)

    async def names() -> list[str]:
        return [repr(task) for task in asyncio.all_tasks()]

    with site.client(site.alpha) as client:
        run = submit(client)["id"]
        Labour(site, run)
        list(zip(range(2), follow(client, run), strict=False))
        before, _ = site.do(held())
        for _ in range(20):
            stream = follow(client, run)
            next(stream)
            stream.close()
        deadline = time.monotonic() + 10
        while site.do(held())[0] > before + 1 or site.service.in_flight:
            assert time.monotonic() < deadline, (before, site.do(names()))
            time.sleep(0.05)


@pytest.mark.parametrize(
    "given", ["x", "-1", "1-", "1-2-3", "99999999999999999999", "1-99999999999999999999", "$", "+"]
)
def test_ids_that_no_stream_has(site: Site, given: str) -> None:
    with site.client(site.alpha) as client:
        run = submit(client)["id"]
        answer = client.get(f"/v1/runs/{run}/events", headers={"Last-Event-ID": given})
        assert error_of(answer) == (400, "bad_event_id")


def test_a_server_that_stops_lets_go_of_its_readers(site: Site) -> None:
    with site.client(site.alpha) as client:
        run = submit(client)["id"]
        Labour(site, run).tell({"type": "step", "n": 0})
        heard = []
        try:
            for event in follow(client, run):
                heard.append(event)
                if event.name == "step":
                    site.loop.call_soon_threadsafe(site.service.draining.set)
            assert heard[-1].name == "step"
            assert error_of(client.get("/v1/runs")) == (503, "draining")
            health = client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
        finally:
            site.loop.call_soon_threadsafe(site.service.draining.clear)
        assert client.get("/v1/runs").status_code == 200


def test_silence_is_filled_and_a_broken_store_ends_the_stream() -> None:
    closed = []

    async def slow() -> AsyncIterator[JobEvent]:
        try:
            await asyncio.sleep(0.1)
            yield JobEvent("1-0", {"type": "step"})
            raise QueueUnavailable("gone")
        finally:
            closed.append(True)

    async def end() -> Any:
        raise AssertionError("a stream that breaks off has no end")

    async def collect() -> list[bytes]:
        return [part async for part in frames(slow(), end, asyncio.Event(), heartbeat=0.02)]

    parts = asyncio.run(collect())
    assert parts[0] == b"retry: 1000\n\n"
    assert parts.count(b": still here\n\n") >= 2
    assert parts[-2:] == [
        b'id: 1-0\nevent: step\ndata: {"type":"step"}\n\n',
        b": Redis does not answer\n\n",
    ]
    assert closed == [True]
