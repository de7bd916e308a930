"""The way to Redis: clients that wait out a restart, and what its failures mean to a caller."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from api.jobs.errors import QueueUnavailable
from workflows.errors import WorkflowInputError

TextRedis = Any
"""redis.asyncio.Redis with `decode_responses`, of which its types do not know."""

TRIES = 6
"""Times a command is tried again where the connection breaks: about four seconds in all."""

CONNECTIONS = 64
"""Commands under way at once; more wait for a connection."""

TIMEOUT = 5.0
"""Seconds after which a server that says nothing counts as gone."""


class _Heeding(Connection):
    """A connection in whose writes no cancellation is lost.

    redis-py writes under `asyncio.wait_for`, and that of Python 3.11 forgets a cancellation that
    comes just as the write ends (bpo-37658, mended in 3.12): the task would go on for good. That
    it was asked still counts in `Task.cancelling`.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)
        if task and task.cancelling() > asked:
            await self.disconnect(nowait=True)  # its answer will never be read
            raise asyncio.CancelledError


class _HeedingTLS(_Heeding, SSLConnection):
    """The same over TLS."""


def heeding(client: TextRedis) -> TextRedis:
    """A client whose connections lose no cancellation; call it before the first command."""
    pool = client.connection_pool
    pool.connection_class = {Connection: _Heeding, SSLConnection: _HeedingTLS}[
        pool.connection_class
    ]
    return client


def commands(url: str) -> TextRedis:
    """A client for commands, on few connections; raises WorkflowInputError for a bad URL."""
    check(url)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=60.0,
        decode_responses=True,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        retry=AsyncRetry(_backoff(), TRIES),
    )
    return heeding(AsyncRedis.from_pool(pool))


def reads(url: str) -> TextRedis:
    """A client for reads that block up to a second, each on a connection of its own."""
    check(url)
    client = AsyncRedis.from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        retry=AsyncRetry(_backoff(), TRIES),
    )
    return heeding(client)


def messages(url: str) -> Redis:
    """A client of the kind that dramatiq works with: blocking, bytes."""
    check(url)
    client: Redis = Redis.from_url(
        url,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        retry=Retry(_backoff(), 1),
    )
    return client


def check(url: str) -> None:
    """Refuse what cannot be the address of a Redis server; raises WorkflowInputError."""
    problem = "it must have the form redis://[:PASSWORD@]HOST:PORT[/NUMBER]"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("redis", "rediss") and bool(parts.hostname)
        valid = (
            valid
            and (parts.port or 6379) > 0
            and parts.path.strip("/").isdecimal() | (parts.path in ("", "/"))
        )
    except ValueError as error:
        valid, problem = False, str(error)
    if not valid:
        shown = "the URL holds a password" if "@" in url else repr(url)
        raise WorkflowInputError(f"RAGWRIGHT_REDIS_URL ({shown}) cannot be used: {problem}")


def place(url: str) -> str:
    """Host, port and database of a URL, without its password."""
    parts = urlsplit(url)
    database = parts.path.strip("/")
    return f"{parts.hostname}:{parts.port or 6379}" + (f"/{database}" if database else "")


def unavailable(error: Exception, url: str) -> QueueUnavailable:
    """What a failure of Redis means: where, what it said, what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        remedy = "check user and password in RAGWRIGHT_REDIS_URL"
    elif isinstance(error, ResponseError):
        remedy = "it answers but refuses to write; mend the server, nothing was accepted"
    else:
        remedy = "start it, or correct RAGWRIGHT_REDIS_URL"
    return QueueUnavailable(f"Redis at {place(url)}: {text}; {remedy}")


async def durability(client: TextRedis) -> str | None:
    """A warning where the server would lose accepted jobs when it ends, else None."""
    try:
        kept = {
            **await client.config_get("appendonly"),
            **await client.config_get("save"),
        }
    except ResponseError as error:
        return (
            f"cannot tell whether Redis keeps jobs on disk ({error}); make sure that the server "
            "has 'appendonly yes'"
        )
    if kept.get("appendonly") == "yes":
        return None
    if kept.get("save"):
        return (
            "Redis keeps snapshots only, so jobs accepted since the latest one are lost when it "
            "ends; set 'appendonly yes' in its configuration"
        )
    return (
        "Redis keeps nothing on disk, so every job is lost when it ends; set 'appendonly yes' in "
        "its configuration"
    )


def _backoff() -> ExponentialWithJitterBackoff:
    return ExponentialWithJitterBackoff(cap=1.0, base=0.05)


FAILURES = (RedisError, OSError)
"""What a command raises where the server is gone, or refuses."""
