"""Errors of the evaluation; each names the value, the place and the remedy."""

from __future__ import annotations

from inference.errors import MethodInputError
from workflows.errors import WorkflowError, WorkflowInputError


class EvaluationError(WorkflowError):
    """Results could not be written or read."""

    code = "evaluation_error"


class EvaluationInputError(EvaluationError, WorkflowInputError):
    """A suite, a workflow or a folder of results that cannot be used; nothing was run."""

    code = "bad_input"


class SuiteInputError(MethodInputError):
    """A suite that does not exist or is not on this machine, or an option it cannot take."""

    code = "bad_suite"
