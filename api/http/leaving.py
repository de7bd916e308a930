"""Work that ends when the client it is for has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive

UNCACHED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Headers of an answer that is never kept or held back on its way."""


async def until_left(work: Coroutine[Any, Any, None], receive: Receive) -> asyncio.Task[None]:
    """The work as a task that is over: to its end, or cancelled because the client went first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_departure(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)
    return working


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
