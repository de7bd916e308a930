"""The edge: agents as Python objects, a client of the service, command line, HTTP and jobs.

`from api import AutoRAG` gives an agent, `from api import Client` the same against a server; each
name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.agents import (
        ATLAS,
        DRAG,
        RAPID,
        Agent,
        AgentResult,
        Ask,
        AutoRAG,
        Citation,
        ClosedBook,
        IterDRAG,
        NaiveRAG,
        Reader,
        RunFailed,
        Step,
    )
    from api.client import Client

__all__ = [
    "ATLAS",
    "DRAG",
    "RAPID",
    "Agent",
    "AgentResult",
    "Ask",
    "AutoRAG",
    "Citation",
    "Client",
    "ClosedBook",
    "IterDRAG",
    "NaiveRAG",
    "Reader",
    "RunFailed",
    "Step",
]

_MODULES = {**dict.fromkeys(__all__, "api.agents"), "Client": "api.client"}


def __getattr__(name: str) -> Any:
    """One of the names above, imported now."""
    if name not in _MODULES:
        raise AttributeError(f"module 'api' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The names above and what is loaded."""
    return sorted({*globals(), *__all__})
