"""A checked workflow becomes a LangGraph state graph.

Node -> graph node; edges that leave a node -> one routing function, first match wins; a parallel
map -> three graph nodes (fan out by `Send`, one task per element, join in order).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END as GRAPH_END
from langgraph.graph import START as GRAPH_START
from langgraph.graph import StateGraph
from langgraph.types import RetryPolicy, Send

from inference import InferenceInputError
from retrieval import RetrievalInputError
from workflows.errors import WorkflowError, WorkflowInputError
from workflows.expressions import Expression, Template
from workflows.keeping import Fenced, NotKept
from workflows.meter import BudgetExhausted
from workflows.nodes import NODES
from workflows.schema import END, START, NodeSpec
from workflows.scope import NodePlan, Scope

RUN_KEY = "_run"
"""A channel that is always written, because a graph cannot start on an empty state."""

_FINAL = (
    BudgetExhausted,
    Fenced,
    NotKept,
    WorkflowInputError,
    InferenceInputError,
    RetrievalInputError,
)

Route = tuple[Expression | None, list[str]]
Router = Callable[[dict[str, Any]], Awaitable[list[str]]]


class NoEdge(WorkflowError):
    """None of the conditions on a node's edges holds."""

    code = "no_edge"


def initial_state(scope: Scope) -> dict[str, Any]:
    """The state a run begins with: the file's `state` section."""
    return {**scope.spec.state, RUN_KEY: scope.spec.name}


def compile_graph(scope: Scope) -> StateGraph[Any, Any, Any, Any]:
    """The state graph of a workflow, bound to one execution; call `.compile(saver)` on it."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(_state_schema(scope))
    for name, node in scope.spec.nodes.items():
        if node.over is None:
            graph.add_node(name, _plain_step(scope, _plan(scope, name)), **_policies(node))
        else:
            _add_map(graph, scope, name)
    _add_edges(graph, scope)
    return graph


def _plan(scope: Scope, name: str) -> NodePlan:
    node = scope.spec.nodes[name]
    return NodePlan(
        name,
        node.use,
        NODES[node.use],
        scope.workflow.options[name],
        scope.workflow.sampling[name],
        node.save,
        node.timeout,
    )


def _state_schema(scope: Scope) -> Any:
    keys: dict[str, Any] = {RUN_KEY: str, **dict.fromkeys(scope.spec.state, Any)}
    for name, node in scope.spec.nodes.items():
        if node.over is not None:
            assert node.into is not None, "validated: a map has both `over` and `into`"
            keys[node.into] = Any
            keys[_parts(name)] = Annotated[list[Any], _gather]
        else:
            written = NODES[node.use].written(node.options)
            if node.trigger is not None:
                written |= NODES[node.use].found.keys()
            keys.update({node.save.get(key, key): Any for key in written})
    return TypedDict("State", keys, total=False)  # type: ignore[operator]


def _policies(node: NodeSpec) -> dict[str, Any]:
    if node.retry is None:
        return {}
    policy = RetryPolicy(
        initial_interval=node.retry.backoff_seconds,
        max_attempts=node.retry.attempts,
        jitter=False,
        retry_on=_worth_retrying,
    )
    return {"retry_policy": policy}


def _worth_retrying(error: Exception) -> bool:
    """Bad input, a spent budget and a lost journal stay what they are however often tried."""
    return not isinstance(error, _FINAL)


def _plain_step(scope: Scope, plan: NodePlan) -> Callable[..., Any]:
    async def step(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        scope.last_state = state
        task = f"{scope.task_path}{config['metadata']['langgraph_step']}:{plan.name}"
        return await scope.step(plan, state, task)

    return step


def _add_edges(graph: StateGraph[Any, Any, Any, Any], scope: Scope) -> None:
    leaving: dict[str, list[Route]] = {}
    for edge, condition in zip(scope.spec.edges, scope.workflow.conditions, strict=True):
        targets = [edge.target] if isinstance(edge.target, str) else list(edge.target)
        targets = [GRAPH_END if target == END else target for target in targets]
        if isinstance(edge.source, list):
            for target in targets:
                graph.add_edge([_exit(scope, source) for source in edge.source], target)
        else:
            leaving.setdefault(edge.source, []).append((condition, targets))
    for source, routes in leaving.items():
        origin = GRAPH_START if source == START else _exit(scope, source)
        if len(routes) == 1 and routes[0][0] is None:
            for target in routes[0][1]:
                graph.add_edge(origin, target)
        else:
            ends = sorted({target for _, targets in routes for target in targets})
            graph.add_conditional_edges(origin, _router(scope, source, routes), ends)


def _router(scope: Scope, source: str, routes: Sequence[Route]) -> Router:
    # LangGraph runs a plain function in a worker thread, which costs more than the routing.
    async def route(state: dict[str, Any]) -> list[str]:
        names = {"state": state, "inputs": scope.inputs}
        for condition, targets in routes:
            if condition is None or condition.evaluate(names):
                return targets
        tried = "; ".join(repr(condition.text) for condition, _ in routes if condition)
        raise NoEdge(
            f"no edge out of node {source!r} holds (tried {tried}); "
            "add an edge without `when` as the last one"
        )

    return route


def _parts(name: str) -> str:
    return f"_parts_{name}"


def _exit(scope: Scope, name: str) -> str:
    """The graph node whose completion means that a node of the file is done."""
    return f"{name}.join" if scope.spec.nodes[name].over is not None else name


def _gather(old: list[Any], new: list[Any] | None) -> list[Any]:
    """Reducer of a map's channel: collect parts; None empties it for the next round of a loop."""
    return [] if new is None else old + new


def _add_map(graph: StateGraph[Any, Any, Any, Any], scope: Scope, name: str) -> None:
    node = scope.spec.nodes[name]
    over = scope.workflow.over[name]
    assert over is not None and node.into is not None, "validated: a map has `over` and `into`"
    plan, into, each = _plan(scope, name), node.into, f"{name}.each"

    async def fan(state: dict[str, Any]) -> dict[str, Any]:
        return {_parts(name): None}

    async def spread(state: dict[str, Any]) -> Any:
        elements = _elements(scope, name, over, state)
        payload = {key: value for key, value in state.items() if not key.startswith("_")}
        return [
            Send(each, {"state": payload, "element": element, "index": index})
            for index, element in enumerate(elements)
        ] or f"{name}.join"

    async def join(state: dict[str, Any]) -> dict[str, Any]:
        parts = sorted(state[_parts(name)], key=lambda part: part["index"])
        return {into: [part["result"] for part in parts], _parts(name): None}

    graph.add_node(name, fan)
    graph.add_node(each, _map_step(scope, plan, node), **_policies(node))
    graph.add_node(f"{name}.join", join)
    graph.add_conditional_edges(name, spread, [each, f"{name}.join"])
    graph.add_edge(each, f"{name}.join")


def _elements(scope: Scope, name: str, over: Template, state: dict[str, Any]) -> list[Any]:
    elements = over.resolve({"state": state, "inputs": scope.inputs})
    if not isinstance(elements, list):
        raise WorkflowError(
            f"node {name!r} maps over {type(elements).__name__} {elements!r}; give a list"
        )
    return elements


def _map_step(scope: Scope, plan: NodePlan, node: NodeSpec) -> Callable[..., Any]:
    places = asyncio.Semaphore(node.max_parallel)

    async def step(part: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        index = part["index"]
        superstep = config["metadata"]["langgraph_step"]
        task = f"{scope.task_path}{superstep}:{plan.name}[{index}]"
        async with places:
            result = await scope.step(plan, part["state"], task, {node.item: part["element"]})
        return {_parts(plan.name): [{"index": index, "result": result}]}

    return step
