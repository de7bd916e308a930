"""Auto-RAG as nodes: open the dialogue, take a turn, read, recall, close, conclude.

The method itself is in `agents.auto_rag`; the order of the nodes is in `library/auto_rag.yaml`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from agents import auto_rag
from agents.auto_rag import Action
from inference import Capability, Message
from workflows.nodes.base import Node, NodeContext, State

ADAPTER = "auto-rag-default"
"""The shipped adapter that turns are generated with, where it was trained on the engine's model."""


class AutoRAGOpen(Node):
    """Opens the dialogue with the question; `demonstrations` dialogues are shown before it.

    With `trained`, none are shown to a model that the shipped adapter was trained on.
    """

    question: str = Field(min_length=1)
    demonstrations: int = Field(default=0, ge=0)
    trained: bool = False

    writes: ClassVar[dict[str, str]] = {
        "dialogue": "messages so far",
        "query": "the query in force; at first the question itself",
        "queries": "queries the model asked for",
        "seen": "ids of the passages shown to the model",
        "passages": "citations of the passages shown, each with its round",
        "round": "retrieval rounds begun",
        "parametric_round": "passages the model wrote from memory",
        "document": "number of the last document turn",
        "malformed": "generations whose turn held no action",
        "generations": "turns generated",
    }
    generates: ClassVar[bool] = True

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The empty dialogue."""
        equipped = self.trained and await context.equipped(ADAPTER)
        demonstrations = 0 if equipped else self.demonstrations
        context.note(adapter=ADAPTER if equipped else None, demonstrations=demonstrations)
        messages = auto_rag.opening(self.question, demonstrations)
        return {
            "dialogue": [_plain(message) for message in messages],
            "query": self.question,
            "queries": [],
            "seen": [],
            "passages": [],
            "round": 0,
            "parametric_round": 0,
            "document": 0,
            "malformed": [],
            "generations": 0,
        }


class AutoRAGTurn(Node):
    """Generates one assistant turn and reads its action: retrieve, answer or malformed.

    A malformed turn leaves the query and the document number as they are, so that the earlier
    query brings further passages, and is counted. With `trained`, the shipped adapter is used
    where it was trained on the engine's model.
    """

    max_tokens: int = Field(default=200, ge=1)
    phase: str = Field(default="retrieval", pattern="^(retrieval|parametric)$")
    trained: bool = False

    reads: ClassVar[tuple[str, ...]] = (
        "dialogue",
        "query",
        "queries",
        "round",
        "document",
        "malformed",
        "generations",
    )
    writes: ClassVar[dict[str, str]] = {
        "dialogue": "with the turn appended",
        "action": "retrieve, answer or malformed",
        "repeated": "true if the query was asked before",
        "query": "the query in force",
        "queries": "queries the model asked for",
        "round": "retrieval rounds begun",
        "document": "number of the next document turn",
        "malformed": "generations whose turn held no action",
        "generations": "turns generated",
        "answer": "the final answer, if this turn gave one",
    }
    generates: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CHAT})

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The dialogue with the turn, and what the turn asks for."""
        dialogue = [Message(**message) for message in state["dialogue"]]
        trained = ADAPTER if self.trained and await context.equipped(ADAPTER) else None
        output = await context.generate(dialogue, max_tokens=self.max_tokens, trained=trained)
        turn = auto_rag.parse_turn(output.text)
        generation = state["generations"] + 1
        update: dict[str, Any] = {
            "dialogue": [*state["dialogue"], {"role": "assistant", "content": output.text}],
            "action": turn.action.value,
            "repeated": False,
            "generations": generation,
        }
        if self.phase == "retrieval":
            update["round"] = state["round"] + 1
        if turn.action is Action.RETRIEVE:
            update["repeated"] = auto_rag.is_repeat(turn.text, state["queries"])
            update["query"] = turn.text
            update["queries"] = [*state["queries"], turn.text]
            update["document"] = state["document"] + 1
        elif turn.action is Action.ANSWER:
            update["answer"] = turn.text
        else:
            update["malformed"] = [*state["malformed"], generation]
        context.note(
            round=update.get("round", state["round"]),
            phase=self.phase,
            action=turn.action.value,
            text=turn.text or output.text.strip(),
            reasoning=turn.reasoning,
            finish_reason=output.finish_reason.value,
            **({"repeated_query": True} if update["repeated"] else {}),
            **({"adapter": trained} if trained else {}),
        )
        return update


class AutoRAGRead(Node):
    """Appends the passages of a round to the dialogue as one numbered document turn."""

    hits: list[dict[str, Any]]

    reads: ClassVar[tuple[str, ...]] = ("dialogue", "seen", "passages", "document", "round")
    writes: ClassVar[dict[str, str]] = {
        "dialogue": "with the document turn appended",
        "seen": "ids of the passages shown to the model",
        "passages": "citations of the passages shown, each with its round",
    }

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The dialogue with the document turn; the passages are marked as seen."""
        turn = auto_rag.document_turn(state["document"], self.hits)
        number = state["round"]
        context.note(
            round=number, document=state["document"], read=[hit["id"] for hit in self.hits]
        )
        return {
            "dialogue": [*state["dialogue"], _plain(turn)],
            "seen": [*state["seen"], *(hit["id"] for hit in self.hits)],
            "passages": [*state["passages"], *({**hit, "round": number} for hit in self.hits)],
        }


class AutoRAGRecall(Node):
    """Parametric phase: the model writes a passage from memory, appended like a document."""

    question: str = Field(min_length=1)
    max_tokens: int = Field(default=200, ge=1)

    reads: ClassVar[tuple[str, ...]] = ("dialogue", "query", "document", "parametric_round")
    writes: ClassVar[dict[str, str]] = {
        "dialogue": "with the pseudo-passage appended",
        "parametric_round": "passages the model wrote from memory",
    }
    generates: ClassVar[bool] = True

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The dialogue with the pseudo-passage as the next document."""
        prompt = auto_rag.elicitation(self.question, state["query"])
        output = await context.generate(prompt, max_tokens=self.max_tokens, stop=("\n",))
        passage = output.text.strip()
        turn = auto_rag.parametric_turn(state["document"], passage)
        number = state["parametric_round"] + 1
        context.note(parametric_round=number, query=state["query"], passage=passage)
        return {"dialogue": [*state["dialogue"], _plain(turn)], "parametric_round": number}


class AutoRAGClose(Node):
    """Answers the bare question without retrieval, after both phases ended without an answer."""

    question: str = Field(min_length=1)
    max_tokens: int = Field(default=100, ge=1)

    reads: ClassVar[tuple[str, ...]] = ("generations",)
    writes: ClassVar[dict[str, str]] = {
        "answer": "the closing answer",
        "action": "closing",
        "generations": "turns generated",
    }
    generates: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CHAT})

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """An answer that rests on no passage."""
        prompt = auto_rag.closing(self.question)
        output = await context.generate(prompt, max_tokens=self.max_tokens)
        context.note(phase="closing", text=output.text.strip())
        return {
            "answer": output.text.strip(),
            "action": "closing",
            "generations": state["generations"] + 1,
        }


class AutoRAGConclude(Node):
    """States the answer, how it was reached, and the passages read on the way.

    `ending` is `retrieval` or `parametric` where the model itself gave a final answer in that
    phase, and `closing` where it never did. Every passage shown to the model is cited, with
    `contains_answer` telling whether the answer stands in it; `grounded` is true if any does and
    the model answered by itself.
    """

    reads: ClassVar[tuple[str, ...]] = (
        "answer",
        "action",
        "passages",
        "parametric_round",
        "malformed",
        "generations",
    )
    writes: ClassVar[dict[str, str]] = {
        "citations": "the passages read, in order",
        "ending": "retrieval, parametric or closing",
        "grounded": "true if the model answered by itself and a passage holds the answer",
    }

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The citations and the manner of the ending."""
        answer = state["answer"]
        citations = [
            {**passage, "contains_answer": auto_rag.supports(passage["text"], answer)}
            for passage in state["passages"]
        ]
        if state["action"] == "closing":
            ending = "closing"
        else:
            ending = "parametric" if state["parametric_round"] else "retrieval"
        grounded = ending != "closing" and any(c["contains_answer"] for c in citations)
        context.note(
            ending=ending,
            grounded=grounded,
            generations=state["generations"],
            malformed=state["malformed"],
        )
        return {"citations": citations, "ending": ending, "grounded": grounded}


def _plain(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}
