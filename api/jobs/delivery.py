"""The receiving end of the transport: as many messages as there are threads, high ones first.

dramatiq's own consumers fetch ahead, so a job could wait behind a long one in a busy worker while
another worker is idle. Here a message is fetched when a thread is free for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ConnectionClosed

from api.jobs.link import FAILURES
from api.jobs.transport import PRIORITIES, JobBroker

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Wait for a message where no notice of one arrives; also the time between heartbeats."""

YIELD_SECONDS = 0.02
EMPTY_MS = 1

LOST = (*FAILURES, ConnectionClosed)


class Gate:
    """Free threads of this process, and what consumers wait for.

    Consumers fetch in turn, holding `fetching`, so that one who finds nothing keeps no slot from
    the others.
    """

    def __init__(self, slots: int) -> None:
        self.fetching = threading.Lock()
        self._free = slots
        self._closed = False
        self._changes = 0
        self._changed = threading.Condition()

    @property
    def changes(self) -> int:
        """Grows whenever there is reason to look again."""
        return self._changes

    def is_open(self) -> bool:
        """Whether a message may be fetched."""
        return self._free > 0 and not self._closed

    def take(self) -> None:
        """Take a slot, for a message that was fetched."""
        with self._changed:
            self._free -= 1

    def give(self) -> None:
        """Give a slot back."""
        with self._changed:
            self._free += 1
            self._changes += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Let consumers look for messages now."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more messages."""
        with self._changed:
            self._closed = True

    def wait(self, seen: int, seconds: float) -> None:
        """Return when something changed since `changes` was `seen`, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen, seconds)


class WorkBroker(JobBroker):
    """The broker of a worker, whose consumers share one gate."""

    def __init__(self, url: str, namespace: str, gate: Gate, queues: Sequence[str]) -> None:
        super().__init__(url, namespace)
        self.gate = gate
        self._away: set[str] = set()
        self._serves = [name for name in PRIORITIES if name in queues]

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue without its twin for delayed messages; delays are the outbox's."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = EMPTY_MS) -> Consumer:
        """A consumer that fetches one message at a time, when the gate lets it."""
        above = self._serves[: self._serves.index(queue_name)]
        inner: Any = super().consume(queue_name, 1, EMPTY_MS)
        return GatedConsumer(self, inner, queue_name, above)

    def lose(self, queue_name: str, error: Exception) -> None:
        """Note that Redis is away; said once for all queues."""
        if not self._away:
            log.warning("messages wait for Redis: %s", error)
        self._away.add(queue_name)

    def reach(self, queue_name: str) -> None:
        """Note that Redis answered."""
        if queue_name in self._away:
            self._away.discard(queue_name)
            if not self._away:
                log.info("messages come from Redis again")

    def waiting(self, queue_name: str) -> bool:
        """Whether a message can be fetched from a queue."""
        return bool(self.client.llen(f"{self.namespace}:{queue_name}"))


class GatedConsumer(Consumer):
    """Wraps dramatiq's consumer; a server that is away is waited for, and acks are made up for."""

    def __init__(self, broker: WorkBroker, inner: Any, queue: str, above: Sequence[str]) -> None:
        self._broker = broker
        self._inner = inner
        self._queue = queue
        self._above = above
        self._unacked: list[MessageProxy] = []

    def __next__(self) -> MessageProxy | None:
        gate, seen = self._broker.gate, self._broker.gate.changes
        try:
            message = self._fetch()
        except LOST as error:
            self._broker.lose(self._queue, error)
            gate.wait(gate.changes, POLL_SECONDS)
            return None
        self._broker.reach(self._queue)
        if message is None:
            gate.wait(seen, POLL_SECONDS)
        return message

    def _fetch(self) -> MessageProxy | None:
        gate = self._broker.gate
        self._make_up()
        if not gate.is_open():
            self._broker.do_qsize(self._queue)  # a heartbeat, as every command is
            return None
        if any(self._broker.waiting(queue) for queue in self._above):
            gate.wait(gate.changes, YIELD_SECONDS)
            gate.wake()
            return None
        with gate.fetching:
            if not gate.is_open():
                return None
            self._inner.prefetch = self._inner.outstanding_message_count + 1
            message: MessageProxy | None = next(self._inner)
            if message is not None:
                gate.take()
            return message

    def _make_up(self) -> None:
        while self._unacked:
            self._inner.ack(self._unacked[0])
            self._unacked.pop(0)

    def ack(self, message: MessageProxy) -> None:
        """Tell the transport that a message is done with; later, if it is away now."""
        try:
            self._inner.ack(message)
        except LOST:
            self._unacked.append(message)
        finally:
            self._broker.gate.give()

    def nack(self, message: MessageProxy) -> None:
        """As `ack`: what becomes of a job stands in its record."""
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give messages back that no thread has begun."""
        back = list(messages)
        try:
            self._inner.requeue(back)
        finally:
            for _ in back:
                self._broker.gate.give()

    def close(self) -> None:
        """Close the wrapped consumer."""
        self._inner.close()
