"""How long the drafts of a request are: a row that is checked in vain costs time, too."""

from __future__ import annotations

FIRST = 3.0
"""Tokens that a request's first draft is taken to have accepted of it."""
KEEPS = 0.7
"""Weight that what was accepted keeps with every draft after it."""
GROWS, BEYOND = 1.5, 2
"""A draft has so many times the tokens that were accepted of late, and so many more."""


class Reach:
    """The most tokens of the next draft, by what was accepted of those before.

    A draft that was accepted to its end could have been longer: the next one is, at once.
    """

    def __init__(self) -> None:
        self._accepted = FIRST

    @property
    def most(self) -> int:
        """Tokens of the next draft."""
        return int(GROWS * self._accepted) + BEYOND

    def settled(self, accepted: int, *, whole: bool) -> None:
        """So many tokens of a draft were accepted; `whole`: along it to the end."""
        self._accepted = KEEPS * self._accepted + (1 - KEEPS) * accepted
        if whole:
            self._accepted = max(self._accepted, accepted)
