"""Errors of knowledge graphs; each names the value, the place and the remedy.

A graph search is a retriever, so its errors are a retriever's errors too.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.errors import RetrievalError, RetrievalInputError


class GraphError(RetrievalError):
    """Something failed while reading or writing a graph."""

    code = "graph_error"


class GraphInputError(GraphError, RetrievalInputError):
    """A file, a graph or a question about one that cannot be used as it is; nothing was changed."""

    code = "bad_input"


class BadTriples(GraphInputError):
    """Files of facts with what is wrong with them, as `place: fault; remedy` lines."""

    code = "bad_triples"
    shown = 10

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        listed = " | ".join(self.faults[: self.shown])
        more = len(self.faults) - self.shown
        super().__init__(f"{listed} | and {more} more" if more > 0 else listed)


class BadGraph(GraphInputError):
    """A graph folder that is damaged, incomplete or of another version."""

    code = "bad_graph"


class UnknownEntity(GraphInputError):
    """No entity of the graph has this name."""

    code = "unknown_entity"
