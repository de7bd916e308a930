"""The workflow format: what may stand in a workflow file, as pydantic models.

Semantic checks (names, edges, expressions, node options) are in `workflows.validate`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
"""Names of inputs, resources, nodes and state keys."""

START, END = "start", "end"
"""The two endpoints that every graph has; no node may carry these names."""


class Section(BaseModel):
    """Base of all parts of the format: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(Section):
    """One input of a workflow; without a default it must be given."""

    type: Literal["string", "integer", "number", "boolean", "list", "object"]
    default: Any = None
    description: str = ""
    choices: list[Any] | None = None
    minimum: float | None = None
    maximum: float | None = None

    @property
    def required(self) -> bool:
        """True if the file gives no default."""
        return "default" not in self.model_fields_set


class ResourceSpec(BaseModel):
    """An engine or retriever: `use` names a row of its table, the other keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str

    @property
    def options(self) -> dict[str, Any]:
        """The options, without `use`."""
        return dict(self.model_extra or {})


class RetrySpec(Section):
    """How often a failing node is tried, and the wait before the second try (then doubled)."""

    attempts: int = Field(default=3, ge=1, le=20)
    backoff_seconds: float = Field(default=0.5, ge=0, le=60)


class SamplingSpec(Section):
    """Sampling of a generating node; literals or `${...}` expressions."""

    max_tokens: int | str | None = None
    temperature: float | str | None = None
    top_k: int | str | None = None
    top_p: float | str | None = None
    min_p: float | str | None = None
    repetition_penalty: float | str | None = None
    seed: int | str | None = None
    stop: list[str] | None = None


class NodeSpec(Section):
    """One node: `use` names a row of the node table, `with` holds its options.

    `save` renames what the node writes (node's name -> state key). `over`, `item` and `into`
    turn the node into a parallel map: it runs once per element, with the element under the
    name `item`, and the list of its results is joined, in order, under `into`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    use: str
    options: dict[str, Any] = Field(default_factory=dict, alias="with")
    save: dict[Name, Name] = Field(default_factory=dict)
    engine: Name = "engine"
    retriever: Name = "retriever"
    sampling: SamplingSpec | None = None
    retry: RetrySpec | None = None
    timeout: float | None = Field(default=None, gt=0)
    over: str | None = None
    item: Name = "item"
    into: Name | None = None
    max_parallel: int = Field(default=4, ge=1, le=256)


class EdgeSpec(Section):
    """From one node (or, as a join, from several) to one node (or, as a fan-out, to several).

    Of the edges that leave a node, the first whose `when` holds is taken; an edge without
    `when` always holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: Name | list[Name] = Field(alias="from")
    target: Name | list[Name] = Field(alias="to")
    when: str | None = None


class BudgetSpec(Section):
    """Limits of a run; each a literal or a `${inputs...}` expression."""

    tokens: int | str | None = None
    seconds: float | str | None = None
    retrievals: int | str | None = None


class LimitsSpec(Section):
    """Guards against a graph that does not end."""

    steps: int = Field(default=100, ge=1, le=10_000)


class WorkflowSpec(Section):
    """A whole workflow file."""

    name: Name
    description: str = ""
    inputs: dict[Name, InputSpec] = Field(default_factory=dict)
    resources: dict[Name, ResourceSpec] = Field(default_factory=dict)
    state: dict[Name, Any] = Field(default_factory=dict)
    nodes: dict[Name, NodeSpec] = Field(min_length=1)
    edges: list[EdgeSpec] = Field(min_length=1)
    outputs: dict[Name, Any] = Field(min_length=1)
    budget: BudgetSpec = BudgetSpec()
    limits: LimitsSpec = LimitsSpec()
