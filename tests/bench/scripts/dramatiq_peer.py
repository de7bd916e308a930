"""`python -m tests.bench.scripts.dramatiq_peer URL`: a worker of dramatiq alone, without records.

Its jobs count with a pause per step and append their end to a list, so that lost ones and doubled
ones can be told. Of its settings those are raised that our own transport raises too.
"""

from __future__ import annotations

import sys
import time

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

STEP_SECONDS = 0.01
SPACE = "peer"


def broker_of(url: str) -> RedisBroker:
    """dramatiq's broker: heartbeats after 5 s count as missing, maintenance at every poll."""
    broker = RedisBroker(  # type: ignore[no-untyped-call]
        url=url, namespace=SPACE, heartbeat_timeout=5000, maintenance_chance=1_000_000
    )
    broker.declare_queue("default")
    return broker


def count_actor(broker: RedisBroker) -> dramatiq.Actor[[str, int], None]:
    """The actor that counts: appends (name, when) to `begun`, then to `ended`."""
    client = broker.client

    def count(name: str, to: int) -> None:
        client.rpush(f"{SPACE}:begun", f"{name} {time.time()}")
        for _ in range(to):
            time.sleep(STEP_SECONDS)
        client.rpush(f"{SPACE}:ended", f"{name} {time.time()}")

    return dramatiq.actor(broker=broker, actor_name="count", max_retries=20, min_backoff=1000)(
        count
    )


def main(url: str) -> None:
    """Work until killed."""
    broker = broker_of(url)
    count_actor(broker)
    worker = dramatiq.Worker(broker, worker_threads=2)
    worker.start()
    print("ready", flush=True)
    try:
        while True:
            time.sleep(60)
    except (KeyboardInterrupt, redis.RedisError):
        worker.stop()


if __name__ == "__main__":
    main(sys.argv[1])
