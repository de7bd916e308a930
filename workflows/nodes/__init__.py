"""The table of node kinds: YAML name -> class."""

from __future__ import annotations

from workflows.nodes.auto_rag import (
    AutoRAGClose,
    AutoRAGConclude,
    AutoRAGOpen,
    AutoRAGRead,
    AutoRAGRecall,
    AutoRAGTurn,
)
from workflows.nodes.base import Node
from workflows.nodes.basic import CallWorkflow, Generate, Retrieve, Set
from workflows.nodes.drag import DRAGAnswer
from workflows.nodes.interrupt import Interrupt
from workflows.nodes.iter_drag import (
    IterDRAGConclude,
    IterDRAGLine,
    IterDRAGOpen,
    IterDRAGRead,
)
from workflows.nodes.rapid import RapidAnswer, RapidSelect
from workflows.nodes.reader import ReaderAnswer

NODES: dict[str, type[Node]] = {
    "set": Set,
    "retrieve": Retrieve,
    "generate": Generate,
    "workflow": CallWorkflow,
    "interrupt": Interrupt,
    "reader.answer": ReaderAnswer,
    "auto_rag.open": AutoRAGOpen,
    "auto_rag.turn": AutoRAGTurn,
    "auto_rag.read": AutoRAGRead,
    "auto_rag.recall": AutoRAGRecall,
    "auto_rag.close": AutoRAGClose,
    "auto_rag.conclude": AutoRAGConclude,
    "rapid.select": RapidSelect,
    "rapid.answer": RapidAnswer,
    "drag.answer": DRAGAnswer,
    "iter_drag.open": IterDRAGOpen,
    "iter_drag.line": IterDRAGLine,
    "iter_drag.read": IterDRAGRead,
    "iter_drag.conclude": IterDRAGConclude,
}
