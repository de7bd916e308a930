"""Errors of the retrieval layer; each names the value, the place and the remedy."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from inference.suggest import nearest


class RetrievalError(Exception):
    """Something failed while reading documents or an index; `code` is stable for programs."""

    code = "retrieval_error"


class RetrievalInputError(RetrievalError):
    """Documents, an index or a query that cannot be used as they are; nothing was changed."""

    code = "bad_input"


class BadDocuments(RetrievalInputError):
    """Documents with everything that is wrong with them, as `place: fault; remedy` lines."""

    code = "bad_documents"
    shown = 10

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        if len(self.faults) == 1:
            super().__init__(self.faults[0])
            return
        more = len(self.faults) - self.shown
        listed = " | ".join(self.faults[: self.shown])
        rest = f" | and {more} more" if more > 0 else ""
        super().__init__(f"{len(self.faults)} documents cannot be used: {listed}{rest}")


class BadIndex(RetrievalInputError):
    """An index folder that is damaged, incomplete or made by another model."""

    code = "bad_index"


class UnknownName(RetrievalInputError):
    """A retriever or metadata key that does not exist."""

    code = "unknown_name"


def unknown_name(kind: str, name: str, known: Collection[str]) -> UnknownName:
    """The error for a name that does not exist, with the nearest one that does."""
    return UnknownName(f"unknown {kind} {name!r}; {nearest(name, known)}")
