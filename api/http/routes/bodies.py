"""Bodies of requests about runs, and of their answers: every text, list and number has a limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.http.errors import ApiError
from api.jobs.job import Job, JobState, Priority
from inference.models import CATALOG, list_models

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)]
"""What a caller may call something: never a path or a URL."""

ModelName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$", max_length=128
    ),
]
Key = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Body(BaseModel):
    """A body: what is not in its schema is refused, also a text or truth value for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class BudgetRequest(Body):
    """Upper limits of a run, in place of the workflow's."""

    tokens: int | None = Field(None, ge=1, le=10**9)
    seconds: float | None = Field(None, gt=0, le=30 * 86400)
    retrievals: int | None = Field(None, ge=1, le=10**6)

    def limits(self) -> dict[str, float]:
        """Those that were given."""
        return {name: value for name, value in self if value is not None}


class RunRequest(Body):
    """What to run: a shipped or uploaded workflow with its inputs, over what the tenant has."""

    workflow: Name
    inputs: dict[Key, Any] = Field(default_factory=dict, max_length=64)
    index: Name | None = None
    graph: Name | None = None
    engine: Literal["native", "openai", "vllm"] | None = None
    model: ModelName | None = Field(None, description="a model that the server has, by name")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    budget: BudgetRequest | None = None
    priority: Priority = "normal"
    max_attempts: int = Field(3, ge=1, le=10)

    def require_known_model(self) -> None:
        """Raises ApiError 422 for a model that is not here; a caller makes the server fetch none.

        What a server behind the engine `openai` serves is that server's to know.
        """
        if self.model is None or self.engine == "openai" or self.model in CATALOG:
            return
        here = [entry.name for entry in list_models()]
        if self.model not in here:
            message = f"this server has no model {self.model!r}; it has {', '.join(here)}"
            raise ApiError(422, "unknown_model", message, param="body.model")


class Resume(Body):
    """How a run that rests goes on: answers by the id of what was asked, or a higher budget."""

    answers: dict[Key, Any] = Field(default_factory=dict, max_length=64)
    budget: BudgetRequest | None = None


class Run(BaseModel):
    """A run; times are seconds since the epoch.

    `asks` is what a waiting run wants to know, each with `id` and `node`. `result` is what
    `ragwright run --json` prints.
    """

    id: str
    tenant: str
    workflow: str
    inputs: Mapping[str, Any]
    state: JobState
    priority: Priority
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int
    max_attempts: int
    cancel_requested: bool
    asks: list[dict[str, Any]]
    result: dict[str, Any] | None = None
    error: dict[str, str] | None

    @classmethod
    def of(cls, job: Job, *, brief: bool = False) -> Run:
        """The run as its owner sees it; with `brief` without the result."""
        return cls.model_validate(job.to_dict(brief=brief))


class RunPage(BaseModel):
    """Some runs, and the cursor of those that follow."""

    data: list[Run]
    next: str | None
