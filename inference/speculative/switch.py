"""Whether drafting pays: what steps cost by their rows, and a switch per request."""

from __future__ import annotations

from math import inf

MEMORY = 0.97
"""Weight that a step keeps with every step after it."""
SHARE = 0.05
"""Share of the time of an answer that drafting may have lost."""
DOUBTED = 0.025
"""The same of a drafter that has mostly lost before."""
PATIENCE = 0.08
"""Share of the time of an answer that it may be behind plain decoding before nobody drafts."""
CREDIT = 4
"""Plain steps' time that may be won in advance."""
UNSURE = 1.1
"""Most that an estimate may vary, in terms of the variance of one step."""
TINY = 1e-9
RECENT = 0.7
"""Weight that the first draft of a request keeps with that of every request after it."""


class Costs:
    """Seconds of a step over its rows: a line, fitted to the latest steps with fading weights.

    All requests of an engine share it; steps that also read prompts are left out.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of weight, rows, rows^2, seconds, rows * seconds

    def add(self, rows: int, seconds: float) -> None:
        """A step that decoded `rows` rows, drafted ones among them."""
        news = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [MEMORY * old + new for old, new in zip(self._sums, news, strict=True)]

    def seconds(self, rows: int) -> float | None:
        """What a step over `rows` rows takes; None where the steps were too unlike it to tell."""
        weight, x, xx, y, xy = self._sums
        if not weight:
            return None
        away, spread = rows - x / weight, xx - x * x / weight
        if spread > TINY:
            unsure, slope = away * away / spread, max(0.0, (xy - x * y / weight) / spread)
        else:  # all had as many rows, and one point has no line
            unsure, slope = (0.0, 0.0) if abs(away) < TINY else (inf, 0.0)
        if 1 / weight + unsure > UNSURE:
            return None
        return max(0.0, y / weight + slope * away)


class Record:
    """What drafts of one drafter lost of late, over all requests of an engine.

    The first draft of a request is kept apart: before it a drafter may have the prompt to read.
    """

    def __init__(self) -> None:
        self.plain = 0.0
        """Seconds of a plain step."""
        self._mean: float | None = None
        self._first: float | None = None

    @property
    def losing(self) -> bool:
        """Whether drafts have mostly lost."""
        return self._mean is not None and self._mean > 0

    def add(self, lost: float, plain: float, *, first: bool) -> None:
        """A draft that lost so many seconds, or won them where it is negative."""
        self.plain = plain
        self._mean = _faded(self._mean, lost, MEMORY)
        if first:
            self._first = _faded(self._first, lost, RECENT)

    def price(self, *, first: bool) -> float:
        """Seconds that the next draft of a request may lose; 0 where drafts have mostly paid."""
        if self._mean is None or self._mean <= 0:
            return 0.0
        return max(0.0, self._first or 0.0) if first else self._mean


def _faded(mean: float | None, value: float, memory: float) -> float:
    return value if mean is None else memory * mean + (1 - memory) * value


class Switch:
    """Suspends a request's drafter while it has lost too much time, and tries it again later.

    Time lost is measured, not predicted: what steps with a draft took, drafting included, less
    what the same tokens would have taken in steps in which nobody drafts. It may never be more
    than a small share of the time of the answer so far, so that an answer that nothing can be
    drafted for takes hardly longer; what was won before counts for a few steps only. Where the
    drafter has mostly lost time in the requests before (`record`), that share is half as large,
    and what a draft lost there must fit into it too: a short answer is over before one could be
    afforded. In a batch everyone waits for a draft: an answer that is behind plain decoding all
    the same, since others draft and gain, is not `patient` any more, and a step in which one is
    not is plain for all.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record or Record()
        self._lost = self._passed = self._idle = self._behind = 0.0
        self._plain = self._record.plain
        self._on = True
        self._first = True
        self._drafted = False
        self.suspended = 0

    @property
    def patient(self) -> bool:
        """Whether this answer can bear that others draft: their drafts gain it nothing."""
        return self._behind <= PATIENCE * self._passed

    def on(self, welcome: bool = True) -> bool:
        """Whether to draft for the next step, if that is `welcome`; asked once a step."""
        if self._first:  # a plain step tells what plain steps cost
            self._first = False
            self._passed += self._plain
            return False
        price = self._record.price(first=not self._drafted)
        share = DOUBTED if self._record.losing else SHARE
        on = welcome and self._lost + price <= share * self._passed
        if self._on and not on:
            self.suspended += 1
        self._on = on
        if not on:
            self._passed += self._plain
        return on

    def drafted(self, tokens: int, seconds: float, plain: float | None) -> None:
        """A step with a draft gave `tokens` in `seconds`; a plain one takes `plain` for each.

        Where that cannot be told now, it takes what it took before.
        """
        plain = plain or self._plain
        if not plain:
            return
        lost = seconds - tokens * plain
        self._record.add(self._idle + lost, plain, first=not self._drafted)
        self._drafted, self._idle = True, 0.0
        self._plain = plain
        self._passed += seconds
        self._lost = max(self._lost + lost, -CREDIT * plain)
        self._behind += lost

    def waited(self, seconds: float) -> None:
        """A step without a draft of this request took so much longer, for those of others."""
        self._behind += seconds

    def missed(self, seconds: float, plain: float | None) -> None:
        """The drafter took `seconds` and proposed nothing: a prompt is read, a text looked up."""
        if plain is not None:
            self._plain = plain
        self._idle += seconds
        self._passed += seconds + self._plain  # a plain step follows
        self._lost += seconds

    def end(self) -> None:
        """No draft comes any more; what was done for one is remembered all the same."""
        if self._idle and self._plain:
            self._record.add(self._idle, self._plain, first=not self._drafted)
            self._idle = 0.0
