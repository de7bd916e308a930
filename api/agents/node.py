"""An agent as a node of somebody else's LangGraph graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableLambda

from inference.suggest import nearest
from workflows.errors import WorkflowInputError

if TYPE_CHECKING:
    from api.agents.agent import Agent
    from api.agents.results import AgentResult


def node_of(
    agent: Agent, reads: Mapping[str, str] | None, writes: Mapping[str, str] | None
) -> Runnable[Any, dict[str, Any]]:
    """State in, update out; see `Agent.as_node`."""
    spec = agent.spec.spec
    for names, known, what in ((reads, spec.inputs, "input"), (writes, spec.outputs, "output")):
        for name in names or ():
            if name not in known:
                raise WorkflowInputError(
                    f"workflow {spec.name!r} has no {what} {name!r}; {nearest(name, known)}"
                )

    def inputs(state: Any) -> dict[str, Any]:
        held = state if isinstance(state, Mapping) else vars(state)
        if reads is None:
            return {name: held[name] for name in spec.inputs if name in held}
        return {name: held[key] for name, key in reads.items()}

    def update(result: AgentResult) -> dict[str, Any]:
        outputs = result.raise_if_failed().outputs
        if writes is None:
            return dict(outputs)
        return {key: outputs[name] for name, key in writes.items()}

    def node(state: Any) -> dict[str, Any]:
        return update(agent.run(**inputs(state)))

    async def anode(state: Any) -> dict[str, Any]:
        return update(await agent.arun(**inputs(state)))

    return RunnableLambda(node, afunc=anode, name=spec.name)
