"""Servers that cannot be reached, refuse, forget, or are no Redis; orders that cannot be taken."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.http.store import connect
from api.jobs import link
from api.jobs.embedded import EmbeddedServer, running_url
from api.jobs.errors import QueueUnavailable
from api.jobs.job import JobState
from api.jobs.link import TextRedis
from api.jobs.redis_queue import RedisQueue
from api.jobs.transport import Sender
from api.settings import Settings
from tests.api.jobs.basis import claimed, order, started, with_queue
from workflows.errors import WorkflowInputError


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://127.0.0.1:1",
        "redis://",
        "redis://127.0.0.1:x",
        "redis://127.0.0.1:99999",
        "redis://127.0.0.1/one",
        "redis://[::1",
    ],
)
def test_what_is_no_address_is_refused_by_name(url: str) -> None:
    with pytest.raises(WorkflowInputError, match="RAGWRIGHT_REDIS_URL"):
        RedisQueue(Settings(), url)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(WorkflowInputError) as refused:
        RedisQueue(Settings(), "redis://:hush@127.0.0.1:x")
    assert "hush" not in str(refused.value)


def test_without_an_address_the_error_names_the_ways_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAGWRIGHT_REDIS_URL", raising=False)
    with pytest.raises(WorkflowInputError, match=r"RAGWRIGHT_REDIS_URL.*serve --embedded"):
        RedisQueue(Settings())


@contextmanager
def port(answer: bytes | None) -> Iterator[int]:
    """A port at which nobody listens, or that answers whatever it is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        if answer is None:
            server.close()
            yield number
            return
        thread = threading.Thread(target=_answer, args=(server, answer), daemon=True)
        thread.start()
        yield number
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _answer(server: socket.socket, answer: bytes) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            client.recv(100)
            client.sendall(answer)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-MISCONF Errors writing to the AOF file: No space left on device\r\n" * 8,
    ],
    ids=["closed", "http", "full disk"],
)
def test_a_server_that_does_not_serve_is_named(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "TRIES", 1)

    async def work(url: str) -> None:
        async with RedisQueue.open(Settings(), url) as queue:
            for ask in (queue.check(), queue.submit(order()), queue.get("x"), queue.list()):
                with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1:\d+") as failed:
                    await ask
                assert "hush" not in str(failed.value) and "\n" not in str(failed.value)
                if answer is not None and b"MISCONF" in answer:
                    assert "nothing was accepted" in str(failed.value)

    with port(answer) as number:
        asyncio.run(work(f"redis://:hush@127.0.0.1:{number}"))


def test_a_wrong_password_is_no_outage(valkey: EmbeddedServer) -> None:
    async def work() -> None:
        wrong = valkey.url.replace("redis://:", "redis://:x")
        async with RedisQueue.open(Settings(), wrong) as queue:
            with pytest.raises(QueueUnavailable, match="password"):
                await queue.submit(order())

    asyncio.run(work())


def test_a_restart_is_waited_out_and_loses_nothing(tmp_path: Path) -> None:
    async def work(server: EmbeddedServer) -> None:
        async with RedisQueue.open(Settings(), server.url) as queue:
            claim = await started(queue)
            watching = asyncio.create_task(queue.wait(claim.job.id, seconds=60))
            for _ in range(2):
                before = server.pid
                assert before is not None
                os.kill(before, signal.SIGKILL)
                job = await queue.submit(order())
                assert (await queue.get(job.id)).state is JobState.QUEUED
                assert server.pid != before
            assert await queue.renew(claim)
            await queue.finish(claim, {"status": "completed"})
            assert (await watching).state is JobState.COMPLETED
            assert len((await queue.list())[0]) == 3

    with EmbeddedServer(tmp_path) as server:
        asyncio.run(work(server))


@pytest.mark.parametrize("reach", [link.commands, link.reads, connect])
def test_a_cancellation_is_never_lost_whichever_moment_it_comes(
    valkey: EmbeddedServer, reach: Callable[[str], TextRedis]
) -> None:
    async def asking(client: TextRedis) -> None:
        while True:
            await client.ping()

    async def work() -> None:
        client = reach(valkey.url)
        await client.ping()
        for moment in range(40):
            task = asyncio.create_task(asking(client))
            for _ in range(moment):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=2)
            task.cancel()  # lest a failure goes on for good
            assert done, f"a task cancelled after {moment} turns of the loop went on"
            assert task.cancelled()
        await client.aclose()

    asyncio.run(work())


def test_when_one_message_fails_the_others_are_still_waited_for(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        marked: list[str] = []

        async def mark(job_ids: Sequence[str]) -> None:
            if "first" in job_ids:
                raise QueueUnavailable("gone")
            await asyncio.sleep(0.1)
            marked.extend(job_ids)

        sender = Sender(queue.broker, mark)
        sender.put(("first", "normal"), ("second", "normal"), ("third", "high"))
        await sender.flush()
        assert sorted(marked) == ["second", "third"]

    with_queue(settings, work)


def test_a_queue_closed_while_its_server_dies_leaves_nothing_behind(tmp_path: Path) -> None:
    async def work(server: EmbeddedServer, until: float) -> int:
        async with RedisQueue.open(Settings(), server.url) as queue:
            busy = [asyncio.create_task(submitting(queue)) for _ in range(6)]
            await asyncio.sleep(until)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            for one in busy:
                one.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
        return len(asyncio.all_tasks()) - 1

    async def submitting(queue: RedisQueue) -> None:
        for _ in range(30):
            await queue.submit(order())

    with EmbeddedServer(tmp_path) as server:
        for until in (0.1, 0.12, 0.14):
            before = server.pid
            assert asyncio.run(work(server, until)) == 0
            while server.pid == before or running_url(tmp_path) is None:
                time.sleep(0.02)


def test_what_the_server_keeps_is_told(server: EmbeddedServer) -> None:
    async def work(queue: RedisQueue) -> list[str | None]:
        found = [await queue.check()]
        await queue.client.config_set("save", "3600 1")
        await queue.client.config_set("appendonly", "no")
        found.append(await queue.check())
        await queue.client.config_set("save", "")
        found.append(await queue.check())
        await queue.client.config_set("appendonly", "yes")
        return found

    kept, snapshots, nothing = with_queue(_alone(server), work)
    assert kept is None
    assert snapshots is not None and "snapshots only" in snapshots
    assert nothing is not None and "keeps nothing on disk" in nothing


def test_a_server_that_forbids_the_question_is_told(server: EmbeddedServer) -> None:
    async def work(queue: RedisQueue) -> str | None:
        user = secrets.token_hex(4)
        await queue.client.acl_setuser(
            user,
            enabled=True,
            passwords=["+p"],
            categories=["+@all"],
            commands=["-config"],
            keys=["*"],
            channels=["*"],
        )
        place = server.url.rpartition("@")[2]
        async with RedisQueue.open(Settings(), f"redis://{user}:p@{place}") as limited:
            return await limited.check()

    warning = with_queue(_alone(server), work)
    assert warning is not None and "cannot tell" in warning and "appendonly yes" in warning


def _alone(server: EmbeddedServer) -> Settings:
    return Settings(redis_url=server.url, namespace=f"t{secrets.token_hex(4)}")


def test_orders_that_cannot_be_taken(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        with pytest.raises(WorkflowInputError, match="RAGWRIGHT_MAX_BODY"):
            await queue.submit(order(inputs={"question": "x" * 2000}))
        with pytest.raises(WorkflowInputError, match="UTF-8"):
            await queue.submit(order(inputs={"question": "\udcff"}))
        with pytest.raises(WorkflowInputError, match="run id"):
            await queue.submit(order(run_id="../escape"))
        with pytest.raises(WorkflowInputError, match="priority"):
            await queue.submit(order(), priority="urgent")  # type: ignore[arg-type]
        with pytest.raises(WorkflowInputError, match="max_attempts"):
            await queue.submit(order(), max_attempts=0)
        assert (await queue.list())[0] == []

    with_queue(settings.model_copy(update={"max_body": 2000}), work)


def test_answers_that_are_no_text_are_refused(settings: Settings) -> None:
    async def work(queue: RedisQueue) -> None:
        claim = await started(queue)
        asked = {"status": "interrupted", "asks": [{"id": "q"}]}
        await queue.finish(claim, asked)
        with pytest.raises(WorkflowInputError, match="UTF-8"):
            await queue.resume(claim.job.id, answers={"q": "\udcff"})
        await queue.resume(claim.job.id, answers={"q": {"any": ["json", None]}})
        assert (await claimed(queue, claim.job.id)).answers == {"q": {"any": ["json", None]}}

    with_queue(settings, work)
