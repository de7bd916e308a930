"""The connection to Redis of the HTTP edge: few tries, short waits, one error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from api.jobs.errors import QueueUnavailable
from api.jobs.link import check, heeding

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 5.0


def connect(url: str) -> Redis:
    """A client that says soon when Redis is gone; raises WorkflowInputError for a wrong URL.

    One retry, for connections that a restart of Redis has left dead in the pool: whoever waits
    for an answer over HTTP is better served by 503 than by patience here.
    """
    check(url)
    client: Redis = Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=REPLY_SECONDS,
        retry=Retry(ConstantBackoff(0.05), 1),
        retry_on_error=[RedisConnectionError],
        decode_responses=True,
    )
    heeding(client)
    return client


@asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """Everything that Redis can refuse, as QueueUnavailable."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueUnavailable(
            f"Redis does not answer ({type(error).__name__}); try again in a moment"
        ) from error
