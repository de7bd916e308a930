"""An agent inside somebody else's LangGraph graph, which keeps checkpoints of its own."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from api import ClosedBook, NaiveRAG, RunFailed
from tests.api.agents.words import Words
from tests.workflows.replay import ReplayEngine
from workflows.errors import WorkflowInputError


class State(TypedDict, total=False):
    question: str
    answer: str
    citations: list[dict[str, Any]]
    said: str


def _graph(node: Any, saver: Any = None) -> Any:
    graph = StateGraph(State)
    graph.add_node("rag", node)
    graph.add_edge(START, "rag")
    graph.add_edge("rag", END)
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_node_reads_its_inputs_and_writes_its_outputs(way: str) -> None:
    saver = InMemorySaver()
    with NaiveRAG(engine=ReplayEngine(["Sorley"]), retriever=Words()) as agent:
        graph = _graph(agent.as_node(), saver)
        config: Any = {"configurable": {"thread_id": "t"}}
        start = {"question": "who designed the bridge"}
        if way == "invoke":
            state = graph.invoke(start, config)
        else:
            state = asyncio.run(graph.ainvoke(start, config))
    assert state["answer"] == "Sorley"
    assert state["citations"][0]["document_id"] == "bridge"
    kept = [tuple_.config["configurable"]["checkpoint_ns"] for tuple_ in saver.list(config)]
    assert set(kept) == {""}, "the agent's own steps are no part of the outer graph's checkpoints"


def test_keys_of_the_state_may_have_other_names() -> None:
    engine = ReplayEngine(["yes"])
    with ClosedBook(engine=engine) as agent:
        node = agent.as_node(reads={"question": "said"}, writes={"answer": "question"})
        state = _graph(node).invoke({"said": "is it so?"})
    assert state == {"said": "is it so?", "question": "yes"}
    assert "is it so?" in engine.heard(engine.requests[0])


def test_a_run_that_fails_fails_the_node() -> None:
    budget = {"tokens": 1}
    with ClosedBook(engine=ReplayEngine(["x"]), budget=budget) as agent:
        with pytest.raises(RunFailed, match="budget"):
            _graph(agent.as_node()).invoke({"question": "q"})
        with pytest.raises(WorkflowInputError, match="did you mean 'question'"):
            agent.as_node(reads={"qestion": "said"})
        with pytest.raises(WorkflowInputError, match="no output 'answr'"):
            agent.as_node(writes={"answr": "said"})
