"""What the HTTP edge works with: settings, queue, keys, library, engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from redis.asyncio import Redis

from api.http.engine import engine_config
from api.http.gate import Gate
from api.http.keys import KeyStore
from api.http.metrics import Metrics
from api.http.store import connect
from api.jobs.queue import JobQueue
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from workflows.errors import WorkflowInputError
from workflows.resources import ResourcePool


class Library(Protocol):
    """What tenants have uploaded, by name; `api.library` keeps it in folders.

    Methods read and write files, so the edge calls them in a thread. A name that the tenant does
    not have raises an error that answers 404, also where another tenant has it.
    """

    def index(self, tenant: str, name: str) -> Path:
        """The folder of an index."""
        ...

    def graph(self, tenant: str, name: str) -> Path:
        """The file or folder of a graph."""
        ...

    def workflow(self, tenant: str, name: str) -> Path:
        """The file of a workflow."""
        ...

    def workflows(self, tenant: str) -> Sequence[str]:
        """Names of the tenant's workflows, sorted."""
        ...

    def add_workflow(self, tenant: str, name: str, text: str) -> Path:
        """Keep a workflow that was checked, in place of one of this name."""
        ...

    def remove_workflow(self, tenant: str, name: str) -> None:
        """Delete a workflow; runs that were submitted with it have their own copy."""
        ...


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
    library: Library = field(init=False)
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
        pool = ResourcePool()
        try:
            yield Service(settings, redis, pool, KeyStore(redis, settings.namespace), queue)
        finally:
            await asyncio.to_thread(pool.close)
