"""`ragwright serve`: listen, find or start Redis, keep workers, stop without losing anything."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from api import telemetry
from api.http.app import create_app
from api.http.crew import Crew
from api.http.keys import KeyStore
from api.http.service import Service, open_service
from api.jobs.embedded import EmbeddedServer
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from workflows.errors import WorkflowError, WorkflowInputError
from workflows.store import runs_home

KEY_FILE = "api-key"
"""Where the first key is written, beside the runs."""

FIRST_TENANT = "default"

QUIET = 0.05
"""Seconds between two looks whether requests still run."""

log = logging.getLogger("ragwright.serve")


class CannotListen(WorkflowError):
    """The address cannot be listened on."""

    code = "cannot_listen"


def serve(settings: Settings, *, host: str, port: int, embedded: bool, workers: int) -> None:
    """Serve until SIGTERM or SIGINT; a second signal does not wait for requests.

    Raises WorkflowInputError, CannotListen and QueueUnavailable before anything is served.
    """
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with listening(host, port) as listener, redis_of(settings, embedded) as url:
            found = settings.model_copy(update={"redis_url": url})
            telemetry.setup(found)
            asyncio.run(_serve(found, listener, host, workers))
    finally:
        telemetry.shutdown()
        signal.signal(signal.SIGTERM, before)


async def _serve(settings: Settings, listener: socket.socket, host: str, workers: int) -> None:
    async with open_service(settings) as service:
        assert isinstance(service.queue, RedisQueue)
        if warning := await service.queue.check():
            log.warning("%s", warning)
        await require_key(service.keys, host)
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        environment = {"RAGWRIGHT_REDIS_URL": settings.redis_url or ""}
        async with Crew(workers, environment, settings.drain) as crew:
            address = listener.getsockname()
            shown = f"[{address[0]}]" if listener.family == socket.AF_INET6 else address[0]
            log.info("serving http://%s:%d with %d workers", shown, address[1], workers)
            await DrainingServer(config, service, crew).serve(sockets=[listener])


class DrainingServer(uvicorn.Server):
    """Stops in two steps: refuses what is new and lets requests end, then closes.

    Uvicorn would close its port first; a client could not tell a server that stops from one that
    is gone, and one signal would end the process before its workers and its Redis are put away.
    """

    def __init__(self, config: uvicorn.Config, service: Service, crew: Crew) -> None:
        super().__init__(config)
        self.service = service
        self.crew = crew
        self._loop = asyncio.get_running_loop()
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        self._loop.call_soon_threadsafe(self._signalled)

    def _signalled(self) -> None:
        if self._drain is not None:
            self.should_exit = self.force_exit = True
            return
        self.service.draining.set()
        self._drain = asyncio.create_task(self._quiet())

    async def _quiet(self) -> None:
        """Wait for running requests, at most as long as the settings say; workers stop as well."""
        patience = self.service.settings.drain
        log.info("stopping; requests have %g s", patience)
        crew = asyncio.create_task(self.crew.stop())
        deadline = time.monotonic() + patience
        while self.service.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(QUIET)
        self.should_exit = True
        await crew


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; raises WorkflowInputError, CannotListen."""
    try:
        [(family, kind, number, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise WorkflowInputError(f"--host {host!r} is no address: {error.strerror}") from None
    listener = socket.socket(family, kind, number)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            remedy = "choose another --host or --port"
            if error.errno == errno.EADDRINUSE:
                remedy = "choose another --port, or end the process that has it"
            raise CannotListen(
                f"cannot listen on {host}:{port}: {error.strerror}; {remedy}"
            ) from None
        listener.set_inheritable(False)
        yield listener


@contextmanager
def redis_of(settings: Settings, embedded: bool) -> Iterator[str]:
    """URL of the Redis to use, started where that is asked for; raises WorkflowInputError."""
    if not embedded:
        if settings.redis_url is None:
            raise WorkflowInputError(
                "RAGWRIGHT_REDIS_URL is not set; set it, or start a private server with --embedded"
            )
        yield settings.redis_url
        return
    if settings.redis_url is not None:
        raise WorkflowInputError(
            "RAGWRIGHT_REDIS_URL is set, and --embedded starts another server; use one of them"
        )
    with EmbeddedServer() as server:
        yield server.url


async def require_key(keys: KeyStore, host: str) -> None:
    """Make the first key of a server that only this machine reaches; refuse any other without one.

    The key is written to a file that only its owner can read: a terminal and a log keep what they
    show. Raises WorkflowInputError.
    """
    now = time.time()
    if any(key.works(now) for key in await keys.list()):
        return
    if not is_loopback(host):
        raise WorkflowInputError(
            f"--host {host} is open to other machines and there is no API key; "
            "create one first: ragwright keys create --tenant NAME"
        )
    key, text = await keys.create(FIRST_TENANT, note="made by the first start")
    file = runs_home().parent / KEY_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text + "\n")
    log.info("made key %s for tenant %r, with every scope: %s", key.id, key.tenant, file)


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches; a name other than localhost is not one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _leave(number: int, frame: Any) -> NoReturn:
    """SIGTERM before or after the server runs: leave through every `with`."""
    sys.exit(128 + number)
