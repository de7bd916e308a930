"""What can go wrong with a queue of jobs; bad input is a WorkflowInputError as elsewhere."""

from __future__ import annotations

from workflows.errors import WorkflowError, WorkflowInputError


class UnknownJob(WorkflowInputError):
    """No job of this id, or none of this owner's."""

    code = "unknown_job"


class IdempotencyConflict(WorkflowInputError):
    """The idempotency key was used before with another order."""

    code = "idempotency_conflict"


class JobFinal(WorkflowInputError):
    """The job is in a state in which this cannot be done."""

    code = "job_final"


class QueueFull(WorkflowError):
    """The queue holds as many jobs as it may; try again later."""

    code = "queue_full"


class QueueUnavailable(WorkflowError):
    """Redis cannot be reached, or keeps refusing.

    Whether the last try of a submit arrived is unknown then: the same order, under its key or run
    id, can be submitted again without making a second job.
    """

    code = "queue_unavailable"
