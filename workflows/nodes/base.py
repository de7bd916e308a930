"""The node contract: a pydantic config, what it writes, an async function on the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from inference import Capability, Message, Output
from retrieval import Hit

State = Mapping[str, Any]
"""The run's state: JSON values only, so that it can be checkpointed, traced and compared."""


class NodeContext(Protocol):
    """What the runtime hands to a node; every call is charged to the node's ledger."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The inputs of the workflow."""
        ...

    async def generate(
        self,
        prompt: Sequence[Message] | str,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        references: Sequence[str] = (),
        draft_prompt: Sequence[Message] | None = None,
        trained: str | None = None,
    ) -> Output:
        """One generation by the node's engine under the node's sampling and the run's budget.

        The node's drafter may copy from `references`, and reads `draft_prompt` in place of the
        prompt if it is a model. `trained` is a shipped adapter that `equipped` has promised.
        """
        ...

    async def equipped(self, name: str) -> bool:
        """Whether the shipped adapter `name` fits the node's engine, which then has it.

        False too where the node names adapters of its own.
        """
        ...

    async def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens that each text takes in a prompt of the node's engine."""
        ...

    async def search(
        self,
        queries: Sequence[str],
        k: int | None = None,
        *,
        exclude: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Hits of the node's retriever; `k` defaults to the retriever's own."""
        ...

    async def call_workflow(self, workflow: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of another workflow, run inside this one's budget and checkpoints."""
        ...

    def ask(self, shown: Mapping[str, Any]) -> Any:
        """The answer to what is shown; without one the run stops here and waits for it.

        A node that asks is run again from its beginning, so it asks before it spends anything.
        """
        ...

    def note(self, **facts: Any) -> None:
        """Add facts to the step's record in the trace."""
        ...


class Node(BaseModel):
    """Base of all nodes; the fields are the options that may stand under `with`.

    A field value may be a `${...}` expression in the file; it is resolved against the state
    before the node is built, so `run` sees plain values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reads: ClassVar[tuple[str, ...]] = ()
    """State keys read besides those named in the options."""
    writes: ClassVar[dict[str, str]] = {}
    """State keys written, each with one line on what it holds."""
    found: ClassVar[dict[str, str]] = {}
    """State keys written besides where the node has a trigger, each with what it holds."""
    generates: ClassVar[bool] = False
    """True if the node calls an engine."""
    retrieves: ClassVar[bool] = False
    """True if the node calls a retriever."""
    needs: ClassVar[frozenset[Capability]] = frozenset()
    """Capabilities the node's engine must have."""

    @classmethod
    def written(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """State keys that a node with these options writes, before renaming by `save`."""
        return frozenset(cls.writes)

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """Return the keys of `writes` that change."""
        raise TypeError(f"{type(self).__name__} has no run method")
