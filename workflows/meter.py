"""What a run has spent and what it may still spend."""

from __future__ import annotations

import time
from typing import TypeVar

from inference import Budget, Usage
from workflows.errors import WorkflowError

N = TypeVar("N", int, float)


class BudgetExhausted(WorkflowError):
    """A budget of the run is used up; the run stops with its partial result."""

    code = "budget_exhausted"


class Meter:
    """Adds up a run's usage and says how much of its budget is left.

    A sub-workflow has its own meter, whose charges reach its parent's too. `spent_seconds` is the
    active time of earlier attempts of a resumed run.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        parent: Meter | None = None,
        spent: Usage | None = None,
        spent_seconds: float = 0.0,
    ) -> None:
        self.budget = budget
        self.parent = parent
        self.usage = spent or Usage()
        self._began = time.monotonic() - spent_seconds

    @property
    def elapsed(self) -> float:
        """Active seconds since the run began."""
        return time.monotonic() - self._began

    def charge(self, usage: Usage) -> None:
        """Add what was just spent."""
        self.usage = self.usage + usage
        if self.parent is not None:
            self.parent.charge(usage)

    def tokens_left(self) -> int | None:
        """Tokens that may still be spent; None where nothing limits them."""
        above = self.parent.tokens_left() if self.parent is not None else None
        return _tightest(_left(self.budget.tokens, self.usage.tokens), above)

    def retrievals_left(self) -> int | None:
        """Queries that may still be sent; None where nothing limits them."""
        above = self.parent.retrievals_left() if self.parent is not None else None
        return _tightest(_left(self.budget.retrievals, self.usage.retrievals), above)

    def seconds_left(self) -> float | None:
        """Seconds that may still pass; None where nothing limits them."""
        above = self.parent.seconds_left() if self.parent is not None else None
        return _tightest(_left(self.budget.seconds, self.elapsed), above)

    def require_seconds(self) -> None:
        """Raise BudgetExhausted if the time is over."""
        left = self.seconds_left()
        if left is not None and left <= 0:
            raise BudgetExhausted(
                f"the time budget is used up after {self.elapsed:.1f} s; "
                "raise budget.seconds or resume with --budget seconds=N"
            )

    def require_retrievals(self, queries: int) -> None:
        """Raise BudgetExhausted if so many queries are no longer allowed."""
        left = self.retrievals_left()
        if left is not None and left < queries:
            raise BudgetExhausted(
                f"{queries} more retrieval(s) asked for, {max(left, 0)} left after "
                f"{self.usage.retrievals}; raise budget.retrievals or resume with "
                "--budget retrievals=N"
            )

    def require_tokens(self, prompt_tokens: int) -> int | None:
        """Completion tokens left after a prompt of this size; None where nothing limits them."""
        left = self.tokens_left()
        if left is None:
            return None
        if left <= prompt_tokens:
            raise BudgetExhausted(
                f"a prompt of {prompt_tokens} tokens does not fit the {max(left, 0)} tokens left "
                f"after {self.usage.tokens}; raise budget.tokens or resume with --budget tokens=N"
            )
        return left - prompt_tokens


def _left(allowed: N | None, spent: N) -> N | None:
    return None if allowed is None else allowed - spent


def _tightest(own: N | None, above: N | None) -> N | None:
    return min((limit for limit in (own, above) if limit is not None), default=None)
