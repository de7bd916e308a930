"""GET /v1/models: the engine's model, the embedder, and the workflows a caller can ask."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from api.http.openai.routing import AskDep, build
from api.http.openai.served import (
    DEFAULT,
    EMBEDDER,
    OWNER,
    WORKFLOW,
    Ask,
    engine_of,
    no_model,
    served_name,
)
from api.http.openai.work import in_thread
from workflows.shelves import shipped_workflows

router = build("models")
STARTED = int(time.time())


@router.get("/v1/models")
async def list_models(ask: AskDep) -> dict[str, Any]:
    """All that may stand as `model` in a request."""
    return {"object": "list", "data": [row async for row in _rows(ask)]}


@router.get("/v1/models/{model:path}")
async def get_model(model: str, ask: AskDep) -> dict[str, Any]:
    """One of them."""
    rows = {row["id"]: row async for row in _rows(ask)}
    if model not in rows:
        raise no_model(model, list(rows))
    return rows[model]


async def _rows(ask: Ask) -> AsyncIterator[dict[str, Any]]:
    engine = await engine_of(ask.service)
    for name in dict.fromkeys((DEFAULT, served_name(engine))):
        yield _row(name, "engine", max_model_len=engine.context_length)
    yield _row(EMBEDDER, "embedder")
    for name in await in_thread(lambda: _workflows(ask)):
        yield _row(f"{WORKFLOW}{name}", "workflow")


def _workflows(ask: Ask) -> list[str]:
    own = ask.service.library.workflows(ask.caller.tenant)
    return sorted({*shipped_workflows(), *own})


def _row(name: str, kind: str, **more: Any) -> dict[str, Any]:
    head = {"id": name, "object": "model", "created": STARTED, "owned_by": OWNER}
    return {**head, **more, "ragwright": {"kind": kind}}
