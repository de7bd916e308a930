"""Whether drafting pays: what steps cost by their rows, and a switch per request."""

from __future__ import annotations

MEMORY = 0.97
"""Weight that a step keeps with every step after it."""
SHARE = 0.08
"""Share of the time of an answer that drafting may have lost."""
CREDIT = 4
"""Plain steps' time that may be won in advance."""


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
        """What a step over `rows` rows takes; None while all steps had about as many."""
        weight, x, xx, y, xy = self._sums
        spread = weight * xx - x * x
        if weight < 2 or spread <= 0.25 * weight * weight:
            return None
        slope = max(0.0, (weight * xy - x * y) / spread)
        return max(0.0, (y - slope * x) / weight) + slope * rows


class Switch:
    """Suspends a request's drafter while it has lost too much time, and tries it again later.

    Time lost is measured, not predicted: what steps with a draft took, drafting included, less
    what the same tokens would have taken in steps in which nobody drafts. It may never be more
    than a small share of the time of the answer so far, so that an answer that nothing can be
    drafted for takes hardly longer; what was won before counts for a few steps only.
    """

    def __init__(self) -> None:
        self._lost = self._passed = 0.0
        self._plain = 0.0
        self._on = True
        self._first = True
        self.suspended = 0

    def on(self) -> bool:
        """Whether to draft for the next step; asked once a step."""
        if self._first:  # a plain step tells what plain steps cost
            self._first = False
            return False
        on = self._lost <= SHARE * self._passed
        if self._on and not on:
            self.suspended += 1
        self._on = on
        if not on:
            self._passed += self._plain
        return on

    def drafted(self, tokens: int, seconds: float, plain: float | None) -> None:
        """A step with a draft gave `tokens` in `seconds`; a plain one takes `plain` for each."""
        if plain is None:
            return
        self._plain = plain
        self._passed += seconds
        self._lost = max(self._lost + seconds - tokens * plain, -CREDIT * plain)
