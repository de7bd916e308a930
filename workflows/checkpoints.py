"""Checkpoint savers with a strict serializer: plain data in, plain data out, never pickle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver


def strict_serializer() -> JsonPlusSerializer:
    """A serializer that rebuilds no class outside LangGraph's own list of safe types."""
    return JsonPlusSerializer(
        pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=None
    )


@asynccontextmanager
async def sqlite_saver(file: Path) -> AsyncIterator[AsyncSqliteSaver]:
    """The checkpoints of a run in one SQLite file, which is created if need be."""
    async with aiosqlite.connect(file) as connection:
        yield AsyncSqliteSaver(connection, serde=strict_serializer())
