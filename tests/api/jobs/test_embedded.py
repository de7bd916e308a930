"""The private server: found by others, taken over after a kill, started again, kept on disk."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from api.jobs.embedded import EmbeddedServer, running_url
from api.jobs.errors import QueueUnavailable
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from tests.api.jobs.basis import order
from tests.house.source import ROOT

OWNER = """
import sys, time
from pathlib import Path
from api.jobs.embedded import EmbeddedServer
with EmbeddedServer(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def _client(server: EmbeddedServer) -> Redis:
    return Redis.from_url(server.url, decode_responses=True)


def test_what_it_was_told_is_there_after_a_stop_and_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" folder, größer'
    with EmbeddedServer(folder) as server, _client(server) as client:
        assert running_url(folder) == server.url
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        client.set("a", "1")
    assert running_url(folder) is None, "a server that has ended is not found"
    with EmbeddedServer(folder) as again, _client(again) as client:
        assert again.url == server.url, "workers that know the address find it again"
        client.set("b", "2")
        killed = again.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while running_url(folder) is None or again.pid == killed:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert (client.get("a"), client.get("b")) == ("1", "2")


SMALL_DISK = """#!/bin/sh
# A file system with little room: writes beyond the limit fail, as on a full disk.
if [ -e full ]; then trap '' XFSZ; ulimit -f 64; fi
exec '{binary}' "$@"
"""


def test_what_was_accepted_before_the_disk_was_full_is_there(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    script = tmp_path / "server"
    script.write_text(SMALL_DISK.format(binary=server.binary), encoding="utf-8")
    script.chmod(0o700)
    full = tmp_path / "full"
    full.touch()

    async def work(small: EmbeddedServer) -> None:
        accepted: list[str] = []
        async with RedisQueue.open(Settings(), small.url) as queue:
            with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1"):
                for _ in range(150):
                    accepted.append((await queue.submit(order())).id)
        assert accepted, "there was room for some"
        full.unlink()
        async with RedisQueue.open(Settings(), small.url) as queue:
            last = order()
            while True:
                with suppress(QueueUnavailable):  # the server is started ever more slowly
                    accepted.append((await queue.submit(last)).id)
                    break
            kept = {job.id for job in (await queue.list(limit=200))[0]}
        assert set(accepted) <= kept

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with EmbeddedServer(tmp_path / "redis", script) as small:
            asyncio.run(work(small))


def test_only_who_may_read_the_file_gets_in(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis") as server:
        for name in ("url", "server.conf"):
            assert stat.S_IMODE((server.folder / name).stat().st_mode) == 0o600
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
        stranger = Redis.from_url("redis://" + server.url.rpartition("@")[2])
        with stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        with _client(server) as client:
            assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_second_start_uses_the_server_that_runs(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        with EmbeddedServer(tmp_path) as second:
            assert (second.url, second.owned, first.owned) == (first.url, False, True)
        with _client(first) as client:
            assert client.ping(), "who only found it leaves it running"


def test_a_server_whose_owner_was_killed_is_taken_over(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    with owner:
        owner.kill()
    try:
        with EmbeddedServer(tmp_path) as server:
            assert server.owned and server.pid == pid, "it has gone on meanwhile"
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while running_url(tmp_path) is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert server.pid != pid
    finally:
        if running_url(tmp_path) is not None:
            os.kill(pid, signal.SIGKILL)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("not a folder")
    with pytest.raises(QueueUnavailable, match="did not start"):
        EmbeddedServer(tmp_path).start()
    (tmp_path / "appendonlydir").unlink()
    with EmbeddedServer(tmp_path) as server:
        assert server.owned, "the lock was given back"
