"""Agents: workflows as Python objects, with typed inputs and results."""

from api.agents.agent import Agent, AgentOptions
from api.agents.library import (
    AGENTS,
    ATLAS,
    DRAG,
    RAPID,
    AutoRAG,
    ClosedBook,
    IterDRAG,
    NaiveRAG,
    Reader,
)
from api.agents.results import AgentResult, Ask, Citation, RunFailed, Step

__all__ = [
    "AGENTS",
    "ATLAS",
    "DRAG",
    "RAPID",
    "Agent",
    "AgentOptions",
    "AgentResult",
    "Ask",
    "AutoRAG",
    "Citation",
    "ClosedBook",
    "IterDRAG",
    "NaiveRAG",
    "Reader",
    "RunFailed",
    "Step",
]
