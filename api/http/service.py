"""What the HTTP edge works with: settings, queue, keys, library, engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from api.http.engine import engine_config
from api.http.gate import Gate
from api.http.keys import KeyStore
from api.http.metrics import Metrics
from api.http.store import connect
from api.jobs.queue import JobQueue
from api.jobs.redis_queue import RedisQueue
from api.library import Library
from api.settings import Settings
from workflows.errors import WorkflowInputError
from workflows.resources import ResourcePool


@dataclass
class Service:
    """One server's parts; whoever made them closes them.

    `draining` is set when the server begins to stop: then nothing else is accepted, and streams
    of events end where their reader can go on elsewhere. `in_flight` counts requests.
    """

    settings: Settings
    redis: Redis
    pool: ResourcePool
    keys: KeyStore
    queue: JobQueue
    library: Library
    gate: Gate = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0

    def __post_init__(self) -> None:
        chosen = self.settings
        self.gate = Gate(chosen.engine_running, chosen.engine_waiting, chosen.engine_slowdown)


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """A service over the Redis of the settings, with all it opened closed at the end.

    Raises WorkflowInputError and InferenceInputError for settings that cannot be.
    """
    engine_config(settings)  # loaded by the first who asks, but checked now
    if settings.redis_url is None:
        raise WorkflowInputError(
            "RAGWRIGHT_REDIS_URL is not set; set it, or start a private server with --embedded"
        )
    async with connect(settings.redis_url) as redis, RedisQueue.open(settings) as queue:
        pool, library = ResourcePool(), Library()
        keys = KeyStore(redis, settings.namespace)
        try:
            yield Service(settings, redis, pool, keys, queue, library)
        finally:
            await asyncio.to_thread(library.close)
            await asyncio.to_thread(pool.close)
