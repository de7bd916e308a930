"""What is measured of work in the engine: how long it takes, and how much company slows it."""

from __future__ import annotations

HEADROOM = 0.7
"""Share of the promised slowdown that is planned with; the rest is for what nobody foresees."""
COMPANY = 0.3
"""Share of what is promised beyond the time alone that company may take up."""
LONELY = 1.25
"""Mean number at work up to which a request counts as having been alone."""
WEIGHT = 0.1
"""Weight of the newest value in a moving average."""
DOUBT = 0.99
"""What is left of a slope with every request that tells nothing about it, so that it is tried."""


class Tempo:
    """Moving averages over requests that ended; seconds, and seconds per token.

    Sequences of one batch share a step, and each more makes the step longer by about the same.
    So the time of a request is a line over the number at work: what it takes alone, which is the
    time to its first token and `alone` for each further one, and a `slope` in shares of that.
    `service` is what a request would take alone now, `calm` what it took when nobody had to be
    refused: refusing is work too, and what else burdens the machine counts as well. `doubt` is
    the share by which requests miss what was expected of them, for they differ.
    """

    def __init__(self, slowdown: float) -> None:
        self.slowdown = slowdown
        self.service: float | None = None
        self.calm: float | None = None
        self.first: float | None = None
        self.alone: float | None = None
        self.slope = 0.0
        self.doubt = 0.0
        self._paced = False

    @property
    def bearable(self) -> float:
        """How many times longer than alone the work itself may take."""
        return 1 + COMPANY * (self.slowdown - 1)

    def strain(self, company: float) -> float:
        """How many times longer a request takes with `company` at work than alone."""
        return 1 + self.slope * (max(company, 1) - 1)

    def seconds(self, company: float) -> float | None:
        """What a request takes with `company` at work; None before anything was measured."""
        return None if self.service is None else self.service * self.strain(company)

    def patience(self, company: float) -> float | None:
        """Longest wait, in seconds, that keeps the promise with `company` at work."""
        lasts = self.seconds(company)
        if lasts is None or self.service is None:
            return None
        usual = self.service if self.calm is None else min(self.calm, self.service)
        return max(0.0, HEADROOM * self.slowdown * usual - lasts)

    def took(
        self, seconds: float, company: float, tokens: int, pace: float | None, calm: bool
    ) -> None:
        """A request ended: its seconds at work, the mean number then, what it produced.

        `pace` is seconds per token behind the first, None where that is not known; `calm` says
        that nobody had to be refused lately.
        """
        expected = self.seconds(company)
        if expected:
            self.doubt = _moved(self.doubt, abs(seconds / expected - 1))
        if pace is not None:
            self._paced = True
            self._learn(seconds, company, tokens, pace)
        lasted = seconds / self.strain(company)
        self.service = _moved(self.service, lasted)
        if calm:
            self.calm = _moved(self.calm, lasted)

    def _learn(self, seconds: float, company: float, tokens: int, pace: float) -> None:
        """What a request tells about the time alone, or about company."""
        behind = max(tokens - 1, 0)
        if company <= LONELY:
            self.alone = _moved(self.alone, pace)
            self.first = _moved(self.first, max(0.0, seconds - behind * pace))
            self.slope *= DOUBT
        elif self.alone is not None and self.first is not None:
            usual = self.first + behind * self.alone
            self.slope = _moved(self.slope, max(0.0, seconds / usual - 1) / (company - 1))

    def width(self, now: int, most: int, refusing: bool) -> int:
        """How many may be at work, given how many may `now`.

        As many as the operator allows, until somebody must be refused: from then on refusing a few
        more keeps the rest fast.
        """
        if not refusing or not self._paced:
            return min(now + 1, most)
        if self.alone is None:
            return 1  # nothing to compare with; a few alone will tell
        fits = most if self.slope == 0 else 1 + (self.bearable - 1) / self.slope
        return max(1, int(min(fits, now + 1, most)))


def _moved(mean: float | None, value: float) -> float:
    return value if mean is None else mean + WEIGHT * (value - mean)
