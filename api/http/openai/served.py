"""Which engine answers, under which name, and how a request gets to it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from api.http.door import Caller
from api.http.engine import engine_config
from api.http.errors import ApiError
from api.http.gate import Visit
from api.http.service import Service
from inference import Engine
from inference.suggest import nearest

DEFAULT = "default"
"""The engine's model, under whatever name it is served."""
EMBEDDER = "minilm"
OWNER = "ragwright"
"""Who owns all models here; the engine `openai` knows by it what this server can do."""
WORKFLOW = "workflow/"
"""What the name of a workflow begins with."""


@dataclass(frozen=True)
class Ask:
    """One request to the API: whose it is, what answers it, and until when it is of use.

    `deadline` is on the clock of `time.monotonic`, `trace` the W3C context that its spans continue.
    """

    service: Service
    caller: Caller
    deadline: float
    request_id: str
    trace: Mapping[str, str] = field(default_factory=dict)

    def within(self, seconds: float | None) -> Ask:
        """The same with an earlier deadline, `seconds` from now."""
        if seconds is None:
            return self
        sooner = min(self.deadline, time.monotonic() + seconds)
        return replace(self, deadline=sooner)

    @asynccontextmanager
    async def enter(self, size: int = 1) -> AsyncIterator[Visit]:
        """A place at the gate for so many sequences; raises ApiError 429 and 503."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise too_late()
        key = self.caller.key_id
        async with self.service.gate.enter(key, size=size, seconds=seconds) as visit:
            yield visit


def too_late() -> ApiError:
    """The answer to a request whose deadline passed before its first token."""
    message = "the deadline passed before the first token; allow more seconds"
    return ApiError(504, "deadline_exceeded", message)


async def engine_of(service: Service) -> Engine:
    """The engine of the service, opened by the first who asks."""
    return await service.pool.engine(engine_config(service.settings))


def served_name(engine: Engine) -> str:
    """What the engine's model is called here: a path on this machine is nobody's business."""
    return Path(engine.model).name if Path(engine.model).is_dir() else engine.model


async def engine_for(ask: Ask, model: str) -> Engine:
    """The engine, if it has this model; raises ApiError 404."""
    engine = await engine_of(ask.service)
    if model not in (DEFAULT, served_name(engine)):
        raise no_model(model, [DEFAULT, served_name(engine)])
    return engine


def no_model(model: str, known: list[str]) -> ApiError:
    """The refusal of a name that no model of this kind has."""
    hint = nearest(model, known)
    message = f"no model {model!r} here for this; {hint} (GET /v1/models lists all)"
    return ApiError(404, "model_not_found", message, param="model")
