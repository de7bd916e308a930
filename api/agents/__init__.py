"""Agents: workflows as Python objects, with typed inputs and results."""

from api.agents.agent import Agent, AgentOptions
from api.agents.library import AGENTS, RAPID, AutoRAG, ClosedBook, NaiveRAG, Reader
from api.agents.results import AgentResult, Ask, Citation, RunFailed, Step

__all__ = [
    "AGENTS",
    "RAPID",
    "Agent",
    "AgentOptions",
    "AgentResult",
    "Ask",
    "AutoRAG",
    "Citation",
    "ClosedBook",
    "NaiveRAG",
    "Reader",
    "RunFailed",
    "Step",
]
