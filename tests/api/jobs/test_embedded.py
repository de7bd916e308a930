"""The private server: found by others, taken over after a kill, started again, kept on disk."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from api.jobs.embedded import EmbeddedServer, running_url
from api.jobs.errors import QueueUnavailable
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
