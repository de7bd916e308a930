"""The bounded queue in front of the engine: who works, who waits, and who is refused at once.

An accepted request is to be answered within `slowdown` times what it takes alone, however many
more are sent. Two things lengthen an answer, and each gets a share of what is promised:

- Company. Sequences share the steps of a batch. While all who come can be served, as many work
  as the operator allows, for that gives the most tokens a second. Once somebody must be refused,
  no more work than keep the time of a request within its share (`Tempo.width`).
- Waiting. A count alone does not bound it, so that a request is accepted only if a place is
  expected to be free in time (`Tempo.patience`). When a place becomes free is told from how long
  those at work have been there and how long requests take. A bound on the wait at the door does
  what CoDel does for a queue of packets (no standing queue) without letting anybody wait who
  will be refused: a refusal is immediate, and says when to come again.

Nothing is measured in the beginning, and then the count of the queue alone bounds it.

Places go to the key with the fewest at work, in turn where that is equal. Where the queue is
full, the newest waiting of the key with the most gives its place up to a key that has fewer
(longest queue drop), so that nobody fills the queue: the former hears 429, and 503 where it is
the service as a whole that has no room.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from api.http.errors import ApiError
from api.http.tempo import Tempo

SLOWDOWN = 2.0
"""How many times longer than alone an accepted request may take."""
RECENT = 2.0
"""Times that a request takes, for which a refusal says that more come than can be served."""
RETRY_SECONDS = 1.0
"""What a refused caller is told where nothing was measured yet."""


@dataclass(eq=False)
class Visit:
    """One request at the gate; `size` is the number of sequences it has at work.

    `deadline` is on the gate's clock. Whoever works sets `done` where the work went to its end, so
    that its time tells something, and if it knows, how many `tokens` came and their `pace`,
    seconds per token behind the first.
    """

    key: str
    size: int
    arrived: float
    deadline: float | None
    done: bool = False
    tokens: int = 0
    pace: float | None = None
    started: float = 0.0
    before: float = 0.0
    width: int = 0
    granted: asyncio.Future[None] | None = field(default=None, repr=False)

    @property
    def waited(self) -> float:
        """Seconds from arrival to start."""
        return self.started - self.arrived


class Gate:
    """At most `running` sequences at work and `waiting` requests behind them; for one event loop.

    `clock` gives seconds and never goes back.
    """

    def __init__(
        self,
        running: int,
        waiting: int,
        slowdown: float = SLOWDOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = running
        self.places = waiting
        self.tempo = Tempo(slowdown)
        self.width = running
        self.accepted = 0
        self.refused = 0
        self._clock = clock
        self._working: dict[Visit, None] = {}
        self._queues: OrderedDict[str, deque[Visit]] = OrderedDict()
        self._at_work: Counter[str] = Counter()
        self._integral = self._since = 0.0  # of the number at work over time
        self._last_refusal = -math.inf

    @property
    def running(self) -> int:
        """Sequences at work."""
        return sum(self._at_work.values())

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(queue) for queue in self._queues.values())

    def figures(self) -> dict[str, float]:
        """Name -> value, for the metrics."""
        return {
            "running": self.running,
            "waiting": self.waiting,
            "width": self.width,
            "accepted": self.accepted,
            "refused": self.refused,
        }

    @asynccontextmanager
    async def enter(
        self, key: str, *, size: int = 1, seconds: float | None = None
    ) -> AsyncIterator[Visit]:
        """A place for a caller's request; `seconds` from now it is of no use any more.

        Raises ApiError 429 or 503 with Retry-After: at once where there is no room, later where
        a key with fewer requests takes the place or the time is up. Cancelling gives it up.
        """
        now = self._clock()
        deadline = None if seconds is None else now + seconds
        visit = Visit(key, min(size, self.most), now, deadline)
        await self._arrive(visit)
        try:
            yield visit
        finally:
            self._leave(visit)

    def expected_wait(self, ahead: int) -> float:
        """Seconds until a place is free for a request with `ahead` sequences before it.

        One at work is taken to need what requests need on average, and one that has needed longer
        already, as long again as it is late; none is sooner than requests are uncertain.
        """
        service = self.tempo.seconds(self.width)
        free = self.width - self.running
        if service is None or ahead < free:
            return 0.0
        now = self._clock()
        left = sorted(
            max(abs(service - (now - visit.started)) / service, self.tempo.doubt)
            for visit in self._working
            for _ in range(visit.size)
        )
        rounds, place = divmod(ahead - max(free, 0), self.width)
        # Those beyond a width that has shrunk leave without making room.
        place = min(place + max(-free, 0), len(left) - 1)
        return service * (rounds + (left[place] if left else 0))

    async def _arrive(self, visit: Visit) -> None:
        if not self._queues and self._fits(visit):
            self._start(visit)
            return
        self._require_time(visit)
        while self._is_full(visit):
            self._drop_for(visit)
        visit.width = self.width
        visit.granted = asyncio.get_running_loop().create_future()
        self._queues.setdefault(visit.key, deque()).append(visit)
        seconds = None if visit.deadline is None else visit.deadline - self._clock()
        try:
            async with asyncio.timeout(seconds):
                await visit.granted
        except TimeoutError:
            self._give_up(visit)
            raise self._refusal(visit, "deadline") from None
        except BaseException:
            self._give_up(visit)
            raise

    def _ahead(self) -> int:
        return sum(visit.size for queue in self._queues.values() for visit in queue)

    def _is_full(self, visit: Visit) -> bool:
        """True where this one would wait too long, or be one too many."""
        if self.waiting >= self.places:
            return True
        patience = self.tempo.patience(self.width)
        return patience is not None and self.expected_wait(self._ahead()) > patience

    def _require_time(self, visit: Visit) -> None:
        """Refuse early what could not start before its deadline."""
        left = None if visit.deadline is None else visit.deadline - visit.arrived
        if left is not None and self.expected_wait(self._ahead_of(visit.key)) >= left:
            raise self._refusal(visit, "deadline")

    def _ahead_of(self, key: str) -> int:
        """Sequences that start before the next of this key, as places go round."""
        mine = len(self._queues.get(key, ()))
        return sum(
            visit.size
            for name, queue in self._queues.items()
            for at, visit in enumerate(queue)
            if name == key or at <= mine
        )

    def _drop_for(self, visit: Visit) -> None:
        """Make room by refusing the newest of the key that has the most, or refuse this one."""
        mine = self._held(visit.key)
        greedy = max(self._queues, key=self._held, default=visit.key)
        if self._held(greedy) <= mine + 1:
            raise self._refusal(visit, self._blame(visit.key))
        last = self._queues[greedy][-1]
        self._drop(last)
        assert last.granted is not None
        if not last.granted.done():
            last.granted.set_exception(self._refusal(last, "key_share"))

    def _blame(self, key: str) -> str:
        """Whether the key has more than its share beside others, or there is no room at all."""
        keys = {*self._queues, *(name for name, count in self._at_work.items() if count), key}
        crowded = len(keys) > 1 and self._held(key) * len(keys) > self.running + self.waiting
        return "key_share" if crowded else "overloaded"

    def _held(self, key: str) -> int:
        """What a key has at work and waiting."""
        return self._at_work[key] + sum(one.size for one in self._queues.get(key, ()))

    def _refusal(self, visit: Visit, code: str) -> ApiError:
        self.refused += 1
        self._last_refusal = self._clock()
        after = max(self.expected_wait(self._ahead()), RETRY_SECONDS)
        status, why = {
            "key_share": (429, "this key has its share of the engine at work and waiting"),
            "overloaded": (503, "the engine has as much work as it can do in time"),
            "deadline": (503, "the engine cannot begin before the deadline of this request"),
        }[code]
        counts = f"{self.running} at work, {self.waiting} waiting"
        message = f"{why} ({counts}); send it again in {after:.0f} s"
        headers = {"retry-after-ms": str(round(after * 1000))}
        return ApiError(status, code, message, retry_after=after, headers=headers)

    def _fits(self, visit: Visit) -> bool:
        """True where there is a place; what is wider than the width may work alone.

        Who was let in to wait keeps the width that the wait was told from: else a width that
        shrinks would make the one who waits pay for all who come.
        """
        return not self._working or self.running + visit.size <= max(self.width, visit.width)

    def _start(self, visit: Visit) -> None:
        self._count()
        visit.started, visit.before = self._since, self._integral
        self._working[visit] = None
        self._at_work[visit.key] += visit.size
        self.accepted += 1

    def _leave(self, visit: Visit) -> None:
        self._count()
        del self._working[visit]
        self._at_work[visit.key] -= visit.size
        if not self._at_work[visit.key]:
            del self._at_work[visit.key]
        seconds = self._since - visit.started
        if visit.done and seconds > 0:
            company = (self._integral - visit.before) / seconds
            lately = RECENT * (self.tempo.seconds(self.width) or 0)
            refusing = self._since - self._last_refusal <= lately
            self.tempo.took(seconds, company, visit.tokens, visit.pace, calm=not refusing)
            self.width = self.tempo.width(self.width, self.most, refusing)
        self._next()

    def _give_up(self, visit: Visit) -> None:
        """Somebody who waits is gone; a place that was just given goes to the next."""
        assert visit.granted is not None
        if visit in self._working:
            self._leave(visit)
            return
        visit.granted.cancel()
        self._drop(visit)
        self._next()

    def _drop(self, visit: Visit) -> None:
        queue = self._queues.get(visit.key)
        if queue is not None and visit in queue:
            queue.remove(visit)
            if not queue:
                del self._queues[visit.key]

    def _next(self) -> None:
        """Give free places away."""
        while self._queues:
            key = min(self._queues, key=lambda name: self._at_work[name])
            visit = self._queues[key][0]
            if not self._fits(visit):
                return
            self._drop(visit)
            if key in self._queues:
                self._queues.move_to_end(key)
            assert visit.granted is not None
            if not visit.granted.done():  # else it is about to hear that it was cancelled
                self._start(visit)
                visit.granted.set_result(None)

    def _count(self) -> None:
        now = self._clock()
        self._integral += self.running * (now - self._since)
        self._since = now
