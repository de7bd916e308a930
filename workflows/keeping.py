"""How a run is kept while it runs: where its events, checkpoints and answers lie.

A run on this host keeps them in a folder (`workflows.store`), a queued job in Redis; the runtime
sees only this contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from langgraph.checkpoint.base import BaseCheckpointSaver

from workflows.errors import WorkflowError
from workflows.events import Event
from workflows.past import Past


class Fenced(WorkflowError):
    """Another attempt has taken this run over; nothing this one still does may be written."""

    code = "fenced"


class NotKept(WorkflowError):
    """What the run did could not be written down; it stopped, and can be resumed."""

    code = "not_kept"


class BadCheckpoint(WorkflowError):
    """A checkpoint that is damaged or was tampered with; nothing of it was used."""

    code = "bad_checkpoint"


class Journal(Protocol):
    """A sink that writes down what a run did; also the run's token journal."""

    def __call__(self, event: Event) -> None:
        """Take an event in; quick, in the run's own thread."""
        ...

    async def flush(self) -> None:
        """Return when all that was taken in is kept; raises Fenced, or what stopped the writing.

        The runtime awaits it before every checkpoint, so no checkpoint is ahead of its journal.
        """
        ...


@dataclass(frozen=True)
class Keeping:
    """How one attempt at a run is kept.

    `saver` opens the run's checkpoints, already fenced: a saver whose attempt was succeeded by
    another raises Fenced. `past` is what earlier attempts did, None in the first. `answers` are
    given to waiting `interrupt` nodes, by the id of what was asked.
    """

    journal: Journal
    saver: Callable[[], AbstractAsyncContextManager[BaseCheckpointSaver[Any]]]
    past: Past | None = None
    answers: Mapping[str, Any] = field(default_factory=dict)
