"""What followed the same tokens before, in the text of one request and in those given with it.

That a text repeats itself is the oldest help to guessing on: Kuhn and De Mori, "A cache-based
natural language model for speech recognition", 1990; here runs of tokens are kept, not words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

ORDER = 3
"""Longest run of tokens that is looked up."""

LATEST = 16
"""Followers of a run that are remembered, those seen last."""

MOST = 1 << 16
"""Runs that are remembered by default: those of 22,000 tokens of a text that never repeats."""


class Followers:
    """Tokens that stood behind each run of one to ORDER tokens, of texts and of one that grows.

    The `most` runs seen last are remembered.
    """

    def __init__(self, texts: Sequence[Sequence[int]] = (), most: int = MOST) -> None:
        self._behind: OrderedDict[tuple[int, ...], dict[int, None]] = OrderedDict()
        self._most = most
        self._read = 0
        for text in texts:
            self._take(text, 0)

    def read(self, ids: Sequence[int]) -> None:
        """Take in what `ids`, all tokens so far, holds behind what was read before."""
        self._take(ids, self._read)
        self._read = len(ids)

    def _take(self, ids: Sequence[int], start: int) -> None:
        for at in range(start, len(ids)):
            token = ids[at]
            # The shortest comes last, so that it is never forgotten before a longer one.
            for length in range(min(ORDER, at), 0, -1):
                run = tuple(ids[at - length : at])
                seen = self._behind.setdefault(run, {})
                self._behind.move_to_end(run)
                seen.pop(token, None)
                seen[token] = None
                if len(seen) > LATEST:
                    del seen[next(iter(seen))]
            while len(self._behind) > self._most:
                self._behind.popitem(last=False)

    def behind(self, path: Sequence[int]) -> dict[int, int]:
        """Tokens that stood behind the end of `path`, and behind how many tokens of it."""
        found: dict[int, int] = {}
        for length in range(1, min(ORDER, len(path)) + 1):
            seen = self._behind.get(tuple(path[-length:]))
            if seen is None:
                break
            found |= dict.fromkeys(seen, length)
        return found

    def copied(self, path: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that go on behind ORDER tokens as the text did, the latest time."""
        run, found = tuple(path[-ORDER:]), list[int]()
        while len(found) < most and (seen := self._behind.get(run)) and len(run) == ORDER:
            found.append(next(reversed(seen)))
            run = (*run[1:], found[-1])
        return found
