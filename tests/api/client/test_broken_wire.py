"""The client over a connection that breaks: in front of the real server stands a cutter."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from api import Client
from tests.api.http.site import Site
from workflows.events import StepFinished


@contextmanager
def cutter(url: str, limits: list[int]) -> Iterator[tuple[str, list[int]]]:
    """A way to a server whose n-th connection breaks after `limits[n]` bytes of answers.

    Later ones hold. Also gives what each that broke had let through.
    """
    target, loop, broke = urlsplit(url), asyncio.new_event_loop(), list[int]()

    async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(4096):
            sink.write(data)
            await sink.drain()

    async def cut(source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: int) -> None:
        passed = 0
        while passed < limit and (data := await source.read(min(4096, limit - passed))):
            sink.write(data)
            await sink.drain()
            passed += len(data)
        if limit == 0:
            await source.read(1)  # the server has answered, and nobody hears it
        broke.append(passed)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(target.hostname, target.port)
        limit = limits.pop(0) if limits else None
        ways = [asyncio.ensure_future(forward(reader, back))]
        ways.append(
            asyncio.ensure_future(
                forward(there, writer) if limit is None else cut(there, writer, limit)
            )
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (back, writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", broke
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def test_a_submit_whose_answer_is_lost_runs_once(served: Site) -> None:
    with Client(served.url, served.alpha) as direct:
        before = {run.id for run in direct.runs()}
        with cutter(served.url, [0, 0, 40]) as (url, broke), Client(url, served.alpha) as client:
            run = client.submit("shout", {"word": "once"})
            assert client.wait(run).answer == "onceonce"
        assert broke == [0, 0, 40]
        assert {run.id for run in direct.runs()} - before == {run.id}


def test_events_over_a_connection_that_breaks_are_told_once_each(served: Site) -> None:
    with Client(served.url, served.alpha) as direct:
        run = direct.submit("shout", {"word": "e", "times": 30})
        assert direct.wait(run).completed
        whole = list(direct.events(run))
        limits = [0, 700, 3000, 2500, 4097]
        with cutter(served.url, limits) as (url, broke), Client(url, served.alpha) as client:
            assert list(client.events(run)) == whole
        assert len(broke) == 5
    assert sum(isinstance(event, StepFinished) for event in whole) == 30
