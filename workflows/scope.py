"""One execution of one workflow: what its nodes share, and how a single step is run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langgraph.errors import GraphBubbleUp
from pydantic import ValidationError

from inference import Budget, Usage
from workflows.context import StepContext
from workflows.errors import WorkflowError
from workflows.events import Event, StepFinished, StepStarted
from workflows.expressions import Template
from workflows.ledger import costs_of
from workflows.loading import Workflow
from workflows.meter import Meter
from workflows.nodes.base import Node, State
from workflows.operators import kind
from workflows.past import Generation, Past
from workflows.resources import Resources


class NodeFailed(WorkflowError):
    """A node's options do not have the values its kind needs, or it wrote an undeclared key."""

    code = "node_failed"


class NodeTimeout(WorkflowError):
    """A node took longer than its `timeout`."""

    code = "timeout"


@dataclass(frozen=True)
class NodePlan:
    """A node of the file, ready to run: its class, its options, its renaming."""

    name: str
    use: str
    kind: type[Node]
    options: Template
    sampling: Template
    save: Mapping[str, str]
    timeout: float | None

    @cached_property
    def constant(self) -> Node | None:
        """The node itself where its options hold no expression, so that it is built once."""
        if not self.options.is_constant:
            return None
        return self.kind.model_validate(self.options.resolve({}))

    def build(self, names: Mapping[str, Any]) -> Node:
        """The node with its options resolved against state, inputs and map item."""
        try:
            return self.constant or self.kind.model_validate(self.options.resolve(names))
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(str(part) for part in first["loc"])
            found = first.get("input")
            shown = kind(found) if isinstance(found, Mapping | list) else repr(found)
            raise NodeFailed(
                f"node {self.name!r} ({self.use}): option {option!r} is {shown}: {first['msg']}"
            ) from None

    def rename(self, update: Mapping[str, Any]) -> dict[str, Any]:
        """What the node wrote, under the state keys the file asks for."""
        return {self.save.get(key, key): value for key, value in update.items()}


class Scope:
    """The live objects that all steps of one workflow execution share."""

    def __init__(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any],
        resources: Resources,
        meter: Meter,
        *,
        seed: int,
        emit: Callable[[Event], None],
        stream_text: bool = False,
        path: str = "",
        task_path: str = "",
        tenant: str = "",
        journalled: bool = False,
        past: Past | None = None,
    ) -> None:
        self.workflow = workflow
        self.spec = workflow.spec
        self.inputs = inputs
        self.resources = resources
        self.meter = meter
        self.seed = seed
        self.emit = emit
        self.stream_text = stream_text
        self.path = path
        self.task_path = task_path
        self.tenant = tenant
        self.journalled = journalled
        self.past = past or Past()
        self.resumed: set[Generation] = set()
        self.last_state: State = {}

    async def step(
        self, plan: NodePlan, state: State, task: str, item: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run one node once and put what it cost and noted into the events."""
        self.meter.require_seconds()
        names = {"state": state, "inputs": self.inputs, **(item or {})}
        context = StepContext(self, plan.name, task, {})
        node = self.path + plan.name
        self.emit(StepStarted(node, plan.use, task, started_at := time.time()))
        began = time.perf_counter()
        error: dict[str, str] | None = None
        waits = False
        try:
            context.sampling = plan.sampling.resolve(names)
            async with _limited(plan):
                return plan.rename(await plan.build(names).run(state, context))
        except GraphBubbleUp:
            waits = True  # it asks somebody, and will run again with the answer
            raise
        except BaseException as caught:
            error = {"code": _code(caught), "message": str(caught) or type(caught).__name__}
            raise
        finally:
            if not waits or context.usage != Usage():
                self.emit(
                    StepFinished(
                        node,
                        plan.use,
                        task,
                        started_at,
                        time.perf_counter() - began,
                        self.meter.elapsed,
                        context.usage,
                        context.notes,
                        error,
                        costs_of(context.stats) if context.stats else {},
                    )
                )

    def child(self, node: str, task: str, inputs: Mapping[str, Any]) -> Scope:
        """The scope of a sub-workflow: own inputs and budget, same pool, seed and events."""
        workflow = self.workflow.children[node]
        checked = workflow.check_inputs(inputs)
        return Scope(
            workflow,
            checked,
            self.resources.for_child(workflow.spec),
            Meter(budget_of(workflow, checked), parent=self.meter),
            seed=self.seed,
            emit=self.emit,
            stream_text=self.stream_text,
            path=f"{self.path}{node}/",
            task_path=f"{task}/",
            tenant=self.tenant,
            journalled=self.journalled,
            past=self.past,
        )

    async def call_child(self, node: str, task: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the sub-workflow of a node inside this run's checkpoints; returns its outputs."""
        from workflows.compiler import compile_graph, initial_state

        scope = self.child(node, task, inputs)
        graph = compile_graph(scope).compile()
        state = await graph.ainvoke(
            initial_state(scope), {"recursion_limit": scope.spec.limits.steps}
        )
        outputs: dict[str, Any] = scope.workflow.outputs.resolve(
            {"state": state, "inputs": scope.inputs}
        )
        return outputs


def budget_of(workflow: Workflow, inputs: Mapping[str, Any]) -> Budget:
    """The budget section of a file, its expressions resolved against the inputs."""
    return Budget(**workflow.budget.resolve({"inputs": inputs}))


@asynccontextmanager
async def _limited(plan: NodePlan) -> AsyncIterator[None]:
    """Cancel the node when its time is over, and wait until it has cleaned up."""
    try:
        async with asyncio.timeout(plan.timeout) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise NodeTimeout(
            f"node {plan.name!r} took longer than its timeout of {plan.timeout:g} s; raise it"
        ) from None


def _code(error: BaseException) -> str:
    code = getattr(error, "code", None)
    if isinstance(code, str):
        return code
    return "cancelled" if type(error).__name__ == "CancelledError" else "node_failed"
