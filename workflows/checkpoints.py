"""Checkpoint savers with a strict serializer: plain data in, plain data out, never pickle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from workflows.keeping import Journal


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


class JournalFirst(BaseCheckpointSaver[Any]):
    """Another saver, and a journal that is flushed before each of its writes.

    So no checkpoint is ahead of its journal: what a step cost is known if the step counts.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any], journal: Journal) -> None:
        super().__init__(serde=saver.serde)
        self._saver = saver
        self._journal = journal

    def get_next_version(self, current: Any, channel: None) -> Any:
        """The version that follows, as the saver counts."""
        return self._saver.get_next_version(current, channel)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The newest checkpoint, or the one of the configuration."""
        return await self._saver.aget_tuple(config)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint."""
        await self._journal.flush()
        return await self._saver.aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Keep what one task of a superstep wrote."""
        await self._journal.flush()
        await self._saver.aput_writes(config, writes, task_id, task_path)
