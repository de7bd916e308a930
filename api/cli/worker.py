"""`ragwright worker`: take jobs from the queue and run them until told to stop."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="Jobs at once; they share the engine.",
)
@click.option(
    "--queues",
    default="high,normal,low",
    show_default=True,
    metavar="NAMES",
    help="Priorities to serve, separated by commas.",
)
def worker(threads: int, queues: str) -> None:
    """Run queued jobs until SIGTERM or Ctrl-C; start as many workers, on as many hosts, as needed.

    A worker that stops ends its jobs or gives them back within RAGWRIGHT_DRAIN seconds.
    """
    import asyncio
    import logging

    from api.cli.queues import queue_url, settings_of
    from api.jobs.redis_queue import RedisQueue
    from api.jobs.worker import Worker, serve

    names = _queues(queues)
    settings = settings_of()
    url = queue_url(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("dramatiq").setLevel(logging.WARNING)

    async def work() -> None:
        async with RedisQueue.open(settings, url) as queue:
            await serve(Worker(queue, threads=threads, queues=names))

    asyncio.run(work())


def _queues(text: str) -> list[str]:
    from api.jobs.transport import PRIORITIES
    from inference.suggest import nearest
    from workflows.errors import WorkflowInputError

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PRIORITIES:
            raise WorkflowInputError(f"unknown queue {name!r}; {nearest(name, PRIORITIES)}")
    if not names:
        raise WorkflowInputError("--queues names none; give at least one of high, normal, low")
    return [name for name in PRIORITIES if name in names]
