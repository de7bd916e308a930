"""The node contract over every row of the node table."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from inference import FinishReason, Message, Output, Stats, Usage
from retrieval import Hit, Passage
from workflows.checkpoints import strict_serializer
from workflows.nodes import NODES

HIT = Hit(Passage("d#0", "d", "Title", "d.md", 0, 5, "Some text."), 0.5).citation()
DIALOGUE = [{"role": "user", "content": "Question: Why?"}]
AUTO_RAG = {
    "dialogue": DIALOGUE,
    "query": "why",
    "queries": ["why"],
    "seen": ["c#0"],
    "passages": [{**HIT, "round": 1}],
    "round": 1,
    "parametric_round": 0,
    "document": 1,
    "malformed": [2],
    "generations": 2,
    "action": "answer",
    "answer": "text",
}

ITER_DRAG = {
    "documents": [HIT],
    "chain": [{"question": "how", "documents": [HIT], "answer": None}],
    "iteration": 0,
    "effective_context_length": 7,
    "calls": 1,
    "answer": "text",
}

# A row here for every row of the table: options, and the state the node is run on.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "set": ({"values": {"a": 1, "b": [True, None]}}, {}),
    "retrieve": ({"query": "why"}, {}),
    "generate": ({"prompt": "Why?"}, {}),
    "workflow": ({"name": "closed_book", "inputs": {"question": "Why?"}}, {}),
    "interrupt": ({"ask": "Go on?", "choices": ["yes", "no"]}, {}),
    "reader.answer": ({"question": "Why?", "passages": [HIT]}, {}),
    "auto_rag.open": ({"question": "Why?", "trained": True}, {}),
    "auto_rag.turn": ({}, AUTO_RAG),
    "auto_rag.read": ({"hits": [HIT]}, AUTO_RAG),
    "auto_rag.recall": ({"question": "Why?"}, AUTO_RAG),
    "auto_rag.close": ({"question": "Why?"}, AUTO_RAG),
    "auto_rag.conclude": ({}, AUTO_RAG),
    "rapid.select": ({"hits": [HIT]}, {}),
    "rapid.answer": ({"question": "Why?", "context": [HIT], "excerpt": [HIT]}, {}),
    "drag.answer": ({"question": "Why?", "passages": [HIT], "k": 1, "demonstrations": 2}, {}),
    "iter_drag.open": ({"hits": [HIT]}, {}),
    "iter_drag.line": ({"question": "Why?", "k": 1, "demonstrations": 1}, ITER_DRAG),
    "iter_drag.read": ({"hits": [HIT]}, ITER_DRAG),
    "iter_drag.conclude": ({"question": "Why?"}, ITER_DRAG),
}
SAYS = {"iter_drag.line": "Intermediate answer: so"}
"""What the model says to a node that is particular about it."""


class _Context:
    """A context that answers every call and remembers which were made."""

    inputs: Mapping[str, Any] = {"question": "Why?"}

    def __init__(self, says: str = "Seen.\nRefined Query: because") -> None:
        self.says = says
        self.called: set[str] = set()
        self.notes: dict[str, Any] = {}

    async def generate(self, prompt: Sequence[Message] | str, **_: Any) -> Output:
        self.called.add("generate")
        return Output("r", self.says, (1, 2), FinishReason.STOP, Usage(), Stats())

    async def equipped(self, name: str) -> bool:
        self.called.add("equipped")
        return False

    async def count(self, texts: Sequence[str]) -> list[int]:
        self.called.add("count")
        return [len(text.split()) for text in texts]

    async def search(self, queries: Sequence[str], k: int | None = None, **_: Any) -> Any:
        self.called.add("search")
        return [[Hit(Passage("e#0", "e", "E", "e.md", 0, 1, "E"), 1.0)] for _ in queries]

    async def call_workflow(self, workflow: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.called.add("call_workflow")
        return {"answer": "x"}

    def ask(self, shown: Mapping[str, Any]) -> Any:
        self.called.add("ask")
        return shown["choices"][0]

    def note(self, **facts: Any) -> None:
        self.notes.update(facts)


def _run(kind: str) -> tuple[dict[str, Any], _Context]:
    options, state = CASES[kind]
    context, before = _Context(*filter(None, [SAYS.get(kind)])), copy.deepcopy(state)
    update = asyncio.run(NODES[kind].model_validate(options).run(state, context))
    assert state == before, "a node returns what changes and leaves the state alone"
    return update, context


def test_every_row_is_run_here() -> None:
    assert CASES.keys() == NODES.keys()


@pytest.mark.parametrize("kind", NODES)
def test_a_node_writes_what_it_declares(kind: str) -> None:
    update, _ = _run(kind)
    assert update.keys() <= NODES[kind].written(CASES[kind][0])
    assert update


@pytest.mark.parametrize("kind", NODES)
def test_what_a_node_writes_survives_a_checkpoint(kind: str) -> None:
    update, context = _run(kind)
    assert json.loads(json.dumps(update)) == update, "the state holds JSON values only"
    assert json.loads(json.dumps(context.notes)) == context.notes
    serializer = strict_serializer()
    assert serializer.loads_typed(serializer.dumps_typed(update)) == update


@pytest.mark.parametrize("kind", NODES)
def test_a_node_declares_what_it_calls(kind: str) -> None:
    _, context = _run(kind)
    assert NODES[kind].generates == bool({"generate", "count", "equipped"} & context.called)
    assert NODES[kind].retrieves == ("search" in context.called)
    assert not NODES[kind].needs or NODES[kind].generates


@pytest.mark.parametrize("kind", NODES)
def test_a_node_reads_no_more_than_it_declares(kind: str) -> None:
    options, state = CASES[kind]
    declared = {key: state[key] for key in NODES[kind].reads}
    asyncio.run(
        NODES[kind].model_validate(options).run(declared, _Context(*filter(None, [SAYS.get(kind)])))
    )


@pytest.mark.parametrize("kind", NODES)
def test_a_node_refuses_unknown_options_and_change(kind: str) -> None:
    node = NODES[kind].model_validate(CASES[kind][0])
    with pytest.raises(ValidationError):
        NODES[kind].model_validate({**CASES[kind][0], "unheard_of": 1})
    field = next(iter(NODES[kind].model_fields), None)
    if field is not None:
        with pytest.raises(ValidationError):
            setattr(node, field, getattr(node, field))


@pytest.mark.parametrize("kind", NODES)
def test_every_written_key_is_explained(kind: str) -> None:
    assert all(text.strip() for text in NODES[kind].writes.values())
    assert NODES[kind].writes or kind == "set"
