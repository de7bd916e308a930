"""A small valid workflow over small tables, for tests of what can go wrong with it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from inference import Capability
from inference.engine import EngineConfig
from retrieval import RetrieverConfig
from workflows.errors import Fault, InvalidWorkflow
from workflows.nodes.base import Node
from workflows.nodes.basic import CallWorkflow, Set
from workflows.source import parse_yaml
from workflows.validate import Tables, validate


class Search(Node):
    query: str
    k: int = Field(default=3, ge=1, le=50)
    exclude: list[str] = []
    writes: ClassVar[dict[str, str]] = {"hits": "passages"}
    retrieves: ClassVar[bool] = True


class Ask(Node):
    prompt: str = Field(min_length=1)
    reads: ClassVar[tuple[str, ...]] = ("hits",)
    writes: ClassVar[dict[str, str]] = {"text": "answer", "reason": "why it stopped"}
    generates: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CHAT})


class Steer(Ask):
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGITS})


class Small(EngineConfig):
    model: str = "default"
    threads: int = Field(default=1, ge=1)
    provides = frozenset({Capability.CHAT})


class Large(EngineConfig):
    provides = frozenset({Capability.CHAT, Capability.LOGITS})


class Words(RetrieverConfig):
    k: int = 3


TABLES = Tables(
    {"search": Search, "ask": Ask, "steer": Steer, "set": Set, "workflow": CallWorkflow},
    {"small": Small, "large": Large},
    {"words": Words},
)

BASE = """\
name: base
inputs:
  question: {type: string}
  k: {type: integer, default: 3, minimum: 1, maximum: 9}
resources:
  engine: {use: small}
  retriever: {use: words, k: 5}
state: {round: 0}
nodes:
  find: {use: search, with: {query: "${inputs.question}", k: "${inputs.k}"}}
  ask: {use: ask, with: {prompt: "${state.hits}"}, sampling: {temperature: 0.5}}
  count: {use: set, with: {values: {round: "${state.round + 1}"}}}
edges:
  - {from: start, to: find}
  - {from: find, to: ask}
  - {from: ask, when: "state.round < inputs.k", to: count}
  - {from: ask, to: end}
  - {from: count, to: find}
outputs: {answer: "${state.text}"}
budget: {tokens: 100, seconds: "${inputs.k}"}
"""

VALID = {
    "join and fan-out": """
edges:
  - {from: start, to: [find, count]}
  - {from: [find, count], to: ask}
  - {from: ask, to: end}
""",
    "only conditional edges": """
edges:
  - {from: start, to: count}
  - {from: count, to: find}
  - {from: find, when: "state.round < 1", to: ask}
  - {from: find, when: "state.round >= 1", to: end}
  - {from: ask, to: end}
""",
    "conditions at the start": """
edges:
  - {from: start, when: "inputs.k > 3", to: find}
  - {from: start, to: count}
  - {from: find, to: ask}
  - {from: count, to: ask}
  - {from: ask, to: end}
""",
    "loop through two conditional nodes": """
edges:
  - {from: start, to: find}
  - {from: find, to: ask}
  - {from: ask, when: "state.round > 1", to: end}
  - {from: ask, to: count}
  - {from: count, when: "state.round > 2", to: end}
  - {from: count, to: find}
""",
}
"""Other edges between the same nodes, all valid."""

ASK = 'ask: {use: ask, with: {prompt: "${state.hits}"}, sampling: {temperature: 0.5}}'
"""The node of `BASE` that generates."""


def faults_of(text: str, tables: Tables) -> list[Fault]:
    """What is wrong with a workflow, nothing if it is valid."""
    try:
        validate(parse_yaml(text, "f.yaml"), tables)
    except InvalidWorkflow as error:
        return error.faults
    return []


def with_key(key: str, value: str, base: str) -> str:
    """`base` with one more key on its generating node."""
    assert ASK in base
    return base.replace(ASK, ASK[:-1] + f", {key}: {value}}}")
