"""Worker processes of a server: started with it, started again when they end, ended with it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import api

FIRST_WAIT = 0.5
LAST_WAIT = 30.0
"""Seconds before a worker that ended is started again; doubled from one to the other."""

SOUND = 60.0
"""Seconds after which a worker that ends is not taken for one that cannot start."""

MORE = 5.0
"""Seconds that a worker has beyond its own drain until it is killed."""

log = logging.getLogger("ragwright.serve")

WARD = "import sys; sys.path.insert(0, sys.argv.pop(1)); from api.http.ward import main; main()"
"""Runs the command line of this very installation, whatever lies in the current folder."""


class Crew:
    """`count` processes of `ragwright worker`, with `environment` added to ours.

    They have sessions of their own, so that Ctrl-C reaches only the server, which ends them; and
    a pipe from it (`api.http.ward`), so that they end with it when it is killed.
    """

    def __init__(self, count: int, environment: Mapping[str, str], drain: float) -> None:
        self.count = count
        self.children: dict[int, asyncio.subprocess.Process] = {}
        self._environment = {**os.environ, **environment}
        self._patience = drain + MORE
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Start them; returns at once."""
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(self.count)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ask all to drain, and return when they have ended."""
        if not self._stopping.is_set():
            self._stopping.set()
            for child in self.children.values():
                with suppress(ProcessLookupError):
                    child.terminate()
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=self._patience)
            for child in self.children.values() if late else ():
                with suppress(ProcessLookupError):
                    child.kill()
            await asyncio.gather(*self._keepers)

    async def _keep(self, place: int) -> None:
        wait = FIRST_WAIT
        while not self._stopping.is_set():
            began = time.monotonic()
            child = await self._start()
            self.children[place] = child
            if self._stopping.is_set():
                child.terminate()
            status = await child.wait()
            del self.children[place]
            if self._stopping.is_set():
                return
            wait = FIRST_WAIT if time.monotonic() - began > SOUND else min(2 * wait, LAST_WAIT)
            log.warning(
                "worker %d ended (%s); another starts in %g s", child.pid, _why(status), wait
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        home = str(Path(api.__file__).resolve().parent.parent)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", WARD, home, "worker"),
            stdin=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )


def _why(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
