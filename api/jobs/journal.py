"""The journal of a queued run: its events in the job's stream, while the claim holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import orjson

from api.jobs.errors import QueueUnavailable
from api.jobs.job import Claim
from workflows.events import Event, RunFinished, TextDelta, TokensProduced

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.1
"""Time in which events are gathered before they are written together."""

MOST_EVENTS = 500
"""Events of one batch; a script takes some thousand arguments at most."""

PATIENCE = 0.5
"""Seconds between tries while Redis is away; each try waits for some seconds itself."""


class Appends(Protocol):
    """What writes a batch of events: `RedisQueue`."""

    async def append(self, claim: Claim, batch: int, events: Sequence[bytes]) -> None:
        """Write a batch, once however often it is asked for; raises Fenced, QueueUnavailable."""
        ...


class StreamJournal:
    """Implements `workflows.keeping.Journal`.

    The result is left out: it stands in the job's record. While Redis is away, what was taken in
    waits here.
    """

    def __init__(self, queue: Appends, claim: Claim) -> None:
        self._queue = queue
        self._claim = claim
        self._taken: list[Event] = []
        self._batch = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    def __call__(self, event: Event) -> None:
        """Take an event in; it is written within GATHER_SECONDS."""
        if isinstance(event, RunFinished):
            return
        joined = _joined(self._taken[-1], event) if self._taken else None
        if joined is None:
            self._taken.append(event)
        else:
            self._taken[-1] = joined
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GATHER_SECONDS, self._begin)

    async def flush(self) -> None:
        """Return when everything taken in is written; raises Fenced, or what stopped the writing.

        The writing goes on if the waiting is cancelled.
        """
        while self._failure is None and (self._taken or self._writing()):
            self._begin()
            assert self._writer is not None
            await asyncio.shield(self._writer)
        if self._failure is not None:
            raise self._failure

    def _writing(self) -> bool:
        return self._writer is not None and not self._writer.done()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._writing():
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._taken and self._failure is None:
            taken, self._taken = self._taken[:MOST_EVENTS], self._taken[MOST_EVENTS:]
            self._batch += 1
            try:
                lines = [orjson.dumps(event.to_dict()) for event in taken]
                await self._insist(lines)
            except Exception as failure:  # Fenced, or a defect: `flush` raises it in the run
                self._failure = failure

    async def _insist(self, lines: Sequence[bytes]) -> None:
        while True:
            try:
                return await self._queue.append(self._claim, self._batch, lines)
            except QueueUnavailable as error:
                log.warning("job %s: its journal waits: %s", self._claim.job.id, error)
                await asyncio.sleep(PATIENCE)


def _joined(last: Event, event: Event) -> Event | None:
    """Two pieces of one text or one run of tokens as a single event, else None."""
    if isinstance(last, TextDelta) and isinstance(event, TextDelta) and last.node == event.node:
        return replace(last, text=last.text + event.text)
    if (
        isinstance(last, TokensProduced)
        and isinstance(event, TokensProduced)
        and (last.task, last.call) == (event.task, event.call)
        and last.at + len(last.token_ids) == event.at
    ):
        return replace(last, token_ids=last.token_ids + event.token_ids)
    return None
