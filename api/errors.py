"""Which exceptions are the user's to mend (exit status 2) and which are a failed run (1)."""

from __future__ import annotations

from inference.errors import InferenceError, InferenceInputError
from retrieval.errors import RetrievalError, RetrievalInputError
from workflows.errors import WorkflowError, WorkflowInputError

BAD_INPUT: tuple[type[Exception], ...] = (
    InferenceInputError,
    RetrievalInputError,
    WorkflowInputError,
)
FAILED: tuple[type[Exception], ...] = (InferenceError, RetrievalError, WorkflowError)


def exit_status(error: Exception) -> int | None:
    """2 for bad input, 1 for a failed run, None for an error that is a bug of ours."""
    if isinstance(error, BAD_INPUT):
        return 2
    if isinstance(error, FAILED):
        return 1
    return None
