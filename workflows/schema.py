"""The workflow format: what may stand in a workflow file, as pydantic models.

Semantic checks (names, edges, expressions, node options) are in `workflows.validate`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agents.triggers import METHODS as TRIGGERS
from agents.watching import Trigger
from inference import Capability, Grammar
from inference.kv import KVPolicy
from inference.kv.spec import POLICIES
from inference.speculative import Drafter
from inference.speculative.spec import METHODS

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
    default: Any = Field(
        default=None, description="value where the caller gives none; null means none"
    )
    description: str = ""
    choices: list[Any] | None = Field(default=None, description="the only values allowed")
    minimum: float | None = Field(default=None, description="least value of a number")
    maximum: float | None = Field(default=None, description="greatest value of a number")

    @property
    def required(self) -> bool:
        """True if the file gives no default."""
        return "default" not in self.model_fields_set


class ResourceSpec(BaseModel):
    """An engine or retriever: `use` names a row of its table, the other keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str = Field(description="engine or retriever; the other keys are its options")

    @property
    def options(self) -> dict[str, Any]:
        """The options, without `use`."""
        return dict(self.model_extra or {})


class RetrySpec(Section):
    """How often a failing node is tried, and the wait before the second try (then doubled)."""

    attempts: int = Field(default=3, ge=1, le=20, description="tries in all")
    backoff_seconds: float = Field(
        default=0.5, ge=0, le=60, description="wait before the second try"
    )


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


class GrammarSpec(Section):
    """Language of a generating node's answers: exactly one key, its value taken as it stands."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        json_schema_extra={"minProperties": 1, "maxProperties": 1},
    )

    json_schema: dict[str, Any] | bool | None = Field(
        default=None, alias="schema", description="JSON Schema; answers are compact JSON"
    )
    regex: str | None = Field(default=None, description="expression the whole answer matches")
    ebnf: str | None = Field(default=None, description="rules that start at root")

    @property
    def kinds(self) -> dict[str, Any]:
        """The value of each key, None where it is absent."""
        return {"schema": self.json_schema, "regex": self.regex, "ebnf": self.ebnf}

    def build(self) -> Grammar:
        """The grammar of a request; raises GrammarInputError."""
        if self.json_schema is not None:
            return Grammar.json_schema(self.json_schema)
        if self.regex is not None:
            return Grammar.regex(self.regex)
        return Grammar.ebnf(self.ebnf or "")


AdapterName = Annotated[str, Field(min_length=1)]


class NodeSpec(Section):
    """One node: `use` names a row of the node table, `with` holds its options.

    `save` renames what the node writes (node's name -> state key). `over`, `item` and `into`
    turn the node into a parallel map: it runs once per element, with the element under the
    name `item`, and the list of its results is joined, in order, under `into`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    use: str = Field(description="kind of the node")
    options: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="options of this kind; values may be ${...}"
    )
    save: dict[Name, Name] = Field(
        default_factory=dict, description="what the node writes -> the state key to save it under"
    )
    engine: Name = Field(default="engine", description="engine resource of a generating node")
    retriever: Name = Field(
        default="retriever", description="retriever resource of a retrieving node"
    )
    sampling: SamplingSpec | None = None
    grammar: GrammarSpec | None = Field(default=None, description="language of what it generates")
    adapter: AdapterName | list[AdapterName] | None = Field(
        default=None, description="LoRAs it generates with, as its engine names them"
    )
    kv: Any = Field(default=None, description="what the key/value cache of its generations keeps")
    drafter: Any = Field(default=None, description="what guesses its next tokens ahead")
    trigger: Any = Field(default=None, description="what searches inside its generations")
    retry: RetrySpec | None = None
    timeout: float | None = Field(default=None, gt=0, description="seconds that one try may take")
    over: str | None = Field(default=None, description="${...} that gives the list to map over")
    item: Name = Field(default="item", description="name of the element in this node's expressions")
    into: Name | None = Field(default=None, description="state key of the list of results")
    max_parallel: int = Field(
        default=4, ge=1, le=256, description="elements at work at the same time"
    )

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters it generates with."""
        if isinstance(self.adapter, str):
            return (self.adapter,)
        return tuple(self.adapter or ())

    @property
    def needs(self) -> dict[Capability, str]:
        """What its keys need of an engine, and which key it is."""
        keys = {
            Capability.GRAMMAR: "grammar",
            Capability.LORA: "adapter",
            Capability.KV_POLICY: "kv",
            Capability.SPECULATION: "drafter",
            Capability.ATTENTION_WEIGHTS: "trigger",
        }
        return {need: key for need, key in keys.items() if getattr(self, key) is not None}

    def policy(self) -> KVPolicy | None:
        """The cache policy of a request, None where the node names none; raises KVInputError."""
        return POLICIES.of(self.kv, "kv")

    def drafts(self) -> Drafter | None:
        """What drafts for a request, None where the node names none; raises DrafterInputError."""
        return METHODS.of(self.drafter, "drafter")

    def watches(self) -> Trigger | None:
        """What watches its generations, None where it names none; raises TriggerInputError."""
        return TRIGGERS.of(self.trigger, "trigger")


class EdgeSpec(Section):
    """From one node (or, as a join, from several) to one node (or, as a fan-out, to several).

    Of the edges that leave a node, the first whose `when` holds is taken; an edge without
    `when` always holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: Name | list[Name] = Field(
        alias="from", description="node, or start; several nodes make a join"
    )
    target: Name | list[Name] = Field(
        alias="to", description="node, or end; several nodes make a fan-out"
    )
    when: str | None = Field(default=None, description="condition, an expression without ${}")


class BudgetSpec(Section):
    """Limits of a run; each a literal or a `${inputs...}` expression."""

    tokens: int | str | None = Field(default=None, description="prompt plus completion tokens")
    seconds: float | str | None = Field(default=None, description="wall time")
    retrievals: int | str | None = Field(default=None, description="queries sent to a retriever")


class LimitsSpec(Section):
    """Guards against a graph that does not end."""

    steps: int = Field(default=100, ge=1, le=10_000, description="most steps of the graph")


class WorkflowSpec(Section):
    """A whole workflow file."""

    name: Name
    description: str = ""
    inputs: dict[Name, InputSpec] = Field(default_factory=dict, description="what the caller gives")
    resources: dict[Name, ResourceSpec] = Field(
        default_factory=dict, description="engines and retrievers by name"
    )
    state: dict[Name, Any] = Field(
        default_factory=dict, description="initial values of state keys, literals only"
    )
    nodes: dict[Name, NodeSpec] = Field(min_length=1, description="nodes by name")
    edges: list[EdgeSpec] = Field(
        min_length=1, description="edges, in the order in which their conditions are tried"
    )
    outputs: dict[Name, Any] = Field(
        min_length=1, description="what the run returns; values may be ${...}"
    )
    budget: BudgetSpec = BudgetSpec()
    limits: LimitsSpec = LimitsSpec()
