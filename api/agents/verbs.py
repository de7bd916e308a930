"""The typed face of an agent class: one signature of inputs, worn by each of its methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from api.agents.agent import Agent
from api.agents.results import AgentResult, AsyncEvents, Events

P = ParamSpec("P")

Verbs = tuple[
    Callable[Concatenate[Any, P], AgentResult],
    Callable[Concatenate[Any, P], Events],
    Callable[Concatenate[Any, P], Coroutine[Any, Any, AgentResult]],
    Callable[Concatenate[Any, P], AsyncEvents],
]


def given(signature: Callable[P, None]) -> Callable[P, dict[str, Any]]:
    """A function of the same signature that returns the arguments it was given, by name.

    What was left out stays out, so that an agent's `options` and the workflow's defaults hold.
    """
    names = inspect.signature(signature)

    @wraps(signature)
    def bind(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        return dict(names.bind(*args, **kwargs).arguments)

    return bind


def verbs(inputs: Callable[P, dict[str, Any]]) -> Verbs[P]:
    """`run`, `stream`, `arun` and `astream` of an agent, with the inputs of its workflow."""

    def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AgentResult:
        return Agent.run(self, **inputs(*args, **kwargs))

    def stream(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Events:
        return Agent.stream(self, **inputs(*args, **kwargs))

    async def arun(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AgentResult:
        return await Agent.arun(self, **inputs(*args, **kwargs))

    def astream(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncEvents:
        return Agent.astream(self, **inputs(*args, **kwargs))

    for verb in (run, stream, arun, astream):
        _wear(verb, inputs)
    return run, stream, arun, astream


def _wear(verb: Any, inputs: Callable[..., Any]) -> None:
    """Give a verb the signature of the inputs, for `help` and for editors."""
    generic, face = getattr(Agent, verb.__name__), inspect.signature(inputs)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    verb.__signature__ = face.replace(
        parameters=[itself, *face.parameters.values()],
        return_annotation=inspect.signature(generic).return_annotation,
    )
    verb.__qualname__ = f"{Agent.__name__}.{verb.__name__}"
    verb.__doc__ = f"{inspect.getdoc(generic)}\n\n{inspect.getdoc(inputs) or ''}"
