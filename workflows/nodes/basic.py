"""Nodes that belong to no method: set values, retrieve, generate, call a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from inference import Capability, Message
from retrieval import Hit
from workflows.nodes.base import Node, NodeContext, State


class Set(Node):
    """Writes values to the state, under the names given in `values`."""

    values: dict[str, Any] = Field(min_length=1)

    @classmethod
    def written(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """The keys of `values`."""
        values = options.get("values")
        return frozenset(values) if isinstance(values, Mapping) else frozenset()

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The values, resolved."""
        return dict(self.values)


class Retrieve(Node):
    """Searches the documents for one query; `exclude` holds passage ids never to be returned.

    `after` are hits of an earlier search: they come first, count towards `k`, and are not found
    again.
    """

    query: str
    k: int | None = Field(default=None, ge=1)
    exclude: list[str] = []
    after: list[dict[str, Any]] = []
    where: dict[str, Any] | None = None

    writes: ClassVar[dict[str, str]] = {"hits": "ranked passages as citations, best first"}
    retrieves: ClassVar[bool] = True

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """At most `k` hits, those of `after` and then those for the query."""
        wanted = None if self.k is None else self.k - len(self.after)
        exclude = [*self.exclude, *(hit["id"] for hit in self.after)]
        hits: list[Hit] = []
        if wanted is None or wanted > 0:
            [hits] = await context.search([self.query], wanted, exclude=exclude, where=self.where)
        context.note(query=self.query, documents=[hit.passage.document_id for hit in hits])
        return {"hits": [*self.after[: self.k], *(hit.citation() for hit in hits)]}


class Generate(Node):
    """One answer of the model to a prompt, after an optional system message.

    Where the node has a trigger, `found` are the passages that it searched for meanwhile.
    """

    prompt: str = Field(min_length=1)
    system: str | None = None
    max_tokens: int = Field(default=256, ge=1)
    stop: list[str] = []

    writes: ClassVar[dict[str, str]] = {
        "text": "what the model wrote, stripped",
        "finish_reason": "why it stopped",
    }
    found: ClassVar[dict[str, str]] = {
        "found": "passages that the trigger searched for, as citations"
    }
    generates: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CHAT})

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The model's text."""
        system = [Message("system", self.system)] if self.system else []
        output = await context.generate(
            [*system, Message("user", self.prompt)], max_tokens=self.max_tokens, stop=self.stop
        )
        context.note(text=output.text, finish_reason=output.finish_reason.value)
        update = {"text": output.text.strip(), "finish_reason": output.finish_reason.value}
        if "trigger" in output.notes:
            return {**update, "found": output.notes["trigger"]["passages"]}
        return update


class CallWorkflow(Node):
    """Runs another workflow (a shipped name or a path) and writes its outputs."""

    name: str
    inputs: dict[str, Any] = {}

    writes: ClassVar[dict[str, str]] = {"outputs": "the outputs of the other workflow"}

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The outputs of the sub-workflow."""
        return {"outputs": await context.call_workflow(self.name, self.inputs)}
