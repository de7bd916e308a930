"""From token ids to text while tokens arrive: whole characters, no part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Text that each further token id adds; a character split over tokens waits until whole.

    The ids of the last emitted piece are decoded again with the next one, because decoders
    treat the beginning of a text specially (a leading space, runs of byte tokens).
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._settled = 0  # ids of the window whose text has been emitted
        self._shown = ""  # that text

    def push(self, token_id: int) -> str:
        """Text that became final with this token; may be empty."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._shown):
            return ""
        return self._settle(text)

    def finish(self) -> str:
        """What is left at the end; bytes that form no character become U+FFFD."""
        return self._settle(self._decode(self._window))

    def _settle(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._shown = self._decode(self._window)
        return piece


class StopFinder:
    """Cuts a stream of text at the first stop string, holding back what might begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Text that is certainly before any stop string; sets `found` when one appears."""
        if self.found is not None:
            return ""
        self._held += text
        hits = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits)
            piece, self._held = self._held[:at], ""
            return piece
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        piece, self._held = self._held[:cut], self._held[cut:]
        return piece

    def finish(self) -> str:
        """What was held back in vain."""
        piece, self._held = self._held, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
