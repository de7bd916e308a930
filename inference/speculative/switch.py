"""Whether drafting pays: what steps cost by their rows, and a switch per request."""

from __future__ import annotations

MEMORY = 0.97
"""Weight that a step keeps with every step after it."""
WINDOW = 6
"""Steps with a draft before they are judged."""
PAUSE, LONGEST = 16, 256
"""Tokens decoded plainly after a loss; twice as many after each further one, up to the longest."""


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
    """Suspends a request's drafter while it loses time, and tries it again later.

    Time lost is measured, not predicted: what steps with a draft took, drafting included, against
    what the same tokens would have taken in steps in which nobody drafts.
    """

    def __init__(self) -> None:
        self._wait = 1  # a plain step first: it tells what plain steps cost
        self._pause = PAUSE
        self._steps = 0
        self._took = self._saved = 0.0
        self.suspended = 0

    def on(self) -> bool:
        """Whether to draft for the next step; asked once a step."""
        if self._wait > 0:
            self._wait -= 1
            return False
        return True

    def drafted(self, tokens: int, seconds: float, plain: float | None) -> None:
        """A step with a draft gave `tokens` in `seconds`; a plain one takes `plain` for each."""
        if plain is None:
            return
        self._steps += 1
        self._took += seconds
        self._saved += tokens * plain
        if self._steps < WINDOW:
            return
        if self._took > self._saved:
            self._wait, self._pause = self._pause, min(2 * self._pause, LONGEST)
            self.suspended += 1
        else:
            self._pause = PAUSE
        self._steps, self._took, self._saved = 0, 0.0, 0.0

    def missed(self, seconds: float, plain: float | None) -> None:
        """Drafting took `seconds` and found nothing."""
        if plain is not None:
            self._took += seconds
