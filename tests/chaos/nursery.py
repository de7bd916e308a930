"""`python -m tests.chaos.nursery`: starts workers as forks of one process that has imported all.

A line "start" on standard input starts a worker and answers with its process id. Workers are real
processes with real connections, only their imports are done already, so that a test can afford
many. When the input ends, every worker still there is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from api.jobs.redis_queue import RedisQueue
from api.jobs.worker import Worker, serve
from api.settings import Settings


def main(threads: int) -> None:
    """Serve lines until there are no more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries workers that are killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: list[int] = []
    try:
        while sys.stdin.buffer.raw.readline():  # type: ignore[attr-defined]
            child = os.fork()
            if child == 0:
                _work(threads)
            children.append(child)
            print(child, flush=True)
    finally:
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _work(threads: int) -> None:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(0)
        logging.basicConfig(level=logging.INFO, format="%(process)d %(asctime)s %(message)s")
        logging.getLogger("dramatiq").setLevel(logging.WARNING)
        asyncio.run(_serve(threads))
        status = 0
    finally:
        os._exit(status)


async def _serve(threads: int) -> None:
    async with RedisQueue.open(Settings()) as queue:
        await serve(Worker(queue, threads=threads))


if __name__ == "__main__":
    main(int(sys.argv[1]))
