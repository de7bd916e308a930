"""Checkpoint savers: plain data in, plain data out, never pickle, and fenced.

A fence is a number that grows with each attempt at a run. The database itself refuses what an
overtaken attempt still writes: a trigger compares the saver's number with the newest inside the
transaction of the write, so there is no moment between check and write.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
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
from langgraph.types import Interrupt

from workflows.keeping import BadCheckpoint, Fenced, Journal, NotKept

INTERRUPT = "__interrupt__"
"""Under what LangGraph keeps the questions that a graph stopped at."""

_SECTIONS = ("channel_values", "channel_versions", "versions_seen")

PRUNED_EVERY = 16
"""Supersteps between two removals of checkpoints that no resume needs."""

_FENCED = "overtaken by another attempt"


class StrictSerializer(JsonPlusSerializer):
    """Rebuilds no class outside LangGraph's own list of safe types."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value; raises BadCheckpoint where the bytes cannot be one."""
        try:
            return super().loads_typed(data)
        except Exception as error:
            raise BadCheckpoint(
                f"a checkpoint of this run is damaged ({type(error).__name__}); its kind is "
                f"{data[0]!r:.40}; start the run anew, or restore the checkpoint"
            ) from error


def strict_serializer() -> StrictSerializer:
    """A serializer of plain data, without pickle, without classes of ours or of others."""
    return StrictSerializer(
        pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=None
    )


@asynccontextmanager
async def sqlite_saver(file: Path, fence: int | None = None) -> AsyncIterator[SqliteSaver]:
    """The checkpoints of one run in a SQLite file, which is created if need be.

    With a `fence` all savers with a smaller one, also those that are open, raise Fenced.
    """
    async with aiosqlite.connect(file) as connection:
        saver = SqliteSaver(connection, serde=strict_serializer())
        with _told():
            await saver.setup()
            await saver.claim(fence or 0)
        yield saver


def postgres_saver(
    url: str, run_id: str, fence: int
) -> AbstractAsyncContextManager[BaseCheckpointSaver[Any]]:
    """The checkpoints of one run in a Postgres database, whose tables are made if need be.

    Savers of the same run with a smaller `fence`, also those that are open, raise Fenced.
    """
    from workflows.postgres import saver  # loads psycopg where it is wanted

    return saver(url, run_id, fence)


async def prune(saver: BaseCheckpointSaver[Any], run_id: str) -> None:
    """Remove the checkpoints of a run that resuming it does not need."""
    await saver.aprune([run_id], strategy="keep_latest")


async def discard(saver: BaseCheckpointSaver[Any], run_id: str) -> None:
    """Remove all checkpoints of a run; for one whose result is kept elsewhere."""
    await saver.adelete_thread(run_id)


class SqliteSaver(AsyncSqliteSaver):
    """LangGraph's saver, fenced, with errors that say what to do."""

    async def claim(self, fence: int) -> None:
        """Take the file over from all smaller fences; raises Fenced where there is a larger."""
        await self.conn.executescript(
            """
            CREATE TABLE IF NOT EXISTS fence (one INTEGER PRIMARY KEY CHECK (one = 1), newest);
            INSERT OR IGNORE INTO fence VALUES (1, 0);
            """
        )
        taken = await self.conn.execute(
            "UPDATE fence SET newest = ? WHERE newest <= ?", (fence, fence)
        )
        await self.conn.commit()
        if not taken.rowcount:
            raise Fenced(f"this run was {_FENCED}; this one writes nothing more")
        # Temporary: a trigger of this connection only, which holds this saver's number.
        for table in ("checkpoints", "writes"):
            for act in ("INSERT", "UPDATE", "DELETE"):
                await self.conn.execute(
                    f"CREATE TEMP TRIGGER fence_{table}_{act} BEFORE {act} ON main.{table} "
                    f"WHEN (SELECT newest FROM main.fence) > {int(fence)} "
                    f"BEGIN SELECT RAISE(ABORT, '{_FENCED}'); END"
                )

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint; raises Fenced, NotKept."""
        async with self._writing():
            return await super().aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Keep what one task of a superstep wrote; raises Fenced, NotKept."""
        async with self._writing():
            await super().aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove every checkpoint of a run; raises Fenced, NotKept."""
        async with self._writing():
            await super().adelete_thread(thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove old checkpoints ("keep_latest") or all ("delete"); raises Fenced, NotKept."""
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"unknown strategy {strategy!r}; use keep_latest or delete")
        for thread_id in thread_ids:
            if strategy == "delete":
                await self.adelete_thread(thread_id)
                continue
            async with self._writing(), self.lock:
                await self._keep_latest(str(thread_id))
                await self.conn.commit()

    async def _keep_latest(self, thread_id: str) -> None:
        newest = await self.conn.execute_fetchall(
            "SELECT checkpoint_ns, max(checkpoint_id), metadata FROM checkpoints "
            "WHERE thread_id = ? GROUP BY checkpoint_ns",
            (thread_id,),
        )
        heads = {namespace: (head, metadata) for namespace, head, metadata in newest}
        root = heads.get("", (None, None))[0]
        for namespace, (head, metadata) in heads.items():
            # A sub-workflow that a later step of the run has left behind is over.
            parent = json.loads(metadata or "{}").get("parents", {}).get("")
            over = bool(namespace) and None not in (root, parent) and parent != root
            for table in ("checkpoints", "writes"):
                await self.conn.execute(
                    f"DELETE FROM {table} "
                    "WHERE thread_id = ? AND checkpoint_ns = ? AND (? OR checkpoint_id <> ?)",
                    (thread_id, namespace, over, head),
                )

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Whole or not at all: what fails leaves no transaction open."""
        with _told():
            try:
                yield
            except sqlite3.Error:
                await self.conn.rollback()
                raise


class JournalFirst(BaseCheckpointSaver[Any]):
    """Another saver, and a journal that is flushed before each of its writes.

    So no checkpoint is ahead of its journal: what a step cost is known if the step counts.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any], journal: Journal) -> None:
        super().__init__(serde=saver.serde)
        self._saver = saver
        self._journal = journal
        self._supersteps = 0

    def get_next_version(self, current: Any, channel: None) -> Any:
        """The version that follows, as the saver counts."""
        return self._saver.get_next_version(current, channel)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The newest checkpoint, or the one of the configuration; raises BadCheckpoint."""
        found = await self._saver.aget_tuple(config)
        if found is not None and not _sound(found):
            raise BadCheckpoint(
                "a checkpoint of this run has not the form of one; start the run anew, or restore "
                "the checkpoint"
            )
        return found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint; now and then remove those before it."""
        await self._journal.flush()
        kept = await self._saver.aput(config, checkpoint, metadata, new_versions)
        if not config["configurable"]["checkpoint_ns"]:
            self._supersteps += 1
            if self._supersteps % PRUNED_EVERY == 0:
                await prune(self._saver, config["configurable"]["thread_id"])
        return kept

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


def _sound(found: CheckpointTuple) -> bool:
    """True if what was read has the form that LangGraph writes."""
    whole: Any = found.checkpoint
    if not isinstance(whole, dict) or not isinstance(whole.get("id"), str):
        return False
    if not all(isinstance(whole.get(name), dict) for name in _SECTIONS):
        return False
    return all(
        isinstance(value, list | tuple) and all(isinstance(one, Interrupt) for one in value)
        for _, channel, value in found.pending_writes or ()
        if channel == INTERRUPT
    )


@contextmanager
def _told() -> Iterator[None]:
    """SQLite's errors as what they mean for the run."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        if str(error) != _FENCED:
            raise
        raise Fenced(f"this run was {_FENCED}; this one writes nothing more") from error
    except sqlite3.DatabaseError as error:
        raise NotKept(
            f"the checkpoints of this run cannot be written: {error}; see that the disk has room "
            "and that nothing else holds the file, then resume the run"
        ) from error
