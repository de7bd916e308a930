"""Errors of the workflow layer, and the faults a workflow file can have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class WorkflowError(Exception):
    """A run could not go on; `code` is stable for programs."""

    code = "workflow_error"


class WorkflowInputError(WorkflowError):
    """A workflow, an input or an option that cannot be used; nothing was run."""

    code = "bad_input"


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong with a workflow file, at a place (line and column count from 1)."""

    line: int
    column: int
    code: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


class InvalidWorkflow(WorkflowInputError):
    """A workflow file with all of its faults."""

    code = "invalid_workflow"

    def __init__(self, file: str, faults: list[Fault]) -> None:
        self.file = file
        self.faults = sorted(faults)
        super().__init__("; ".join(f"{file}:{f.line}:{f.column}: {f.message}" for f in self.faults))


class ExpressionError(WorkflowError):
    """An expression that cannot be read, or whose values do not fit its operators.

    `offset` counts characters from the start of `text`, the expression as it stands in the file.
    """

    code = "expression_error"

    def __init__(self, problem: str, *, text: str = "", offset: int = 0) -> None:
        self.problem = problem
        self.text = text
        self.offset = offset
        super().__init__(f"{problem} (in the expression {text!r})" if text else problem)
