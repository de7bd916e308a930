"""Checkpoints in Postgres, for workers on many hosts: fenced by a trigger, set up once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row

from workflows.checkpoints import strict_serializer
from workflows.keeping import Fenced, NotKept

SETUP_LOCK = 0x7261677772
"""Advisory lock that lets one worker at a time make the tables."""

IDLE_SECONDS = 10
"""A transaction whose client stopped in its midst is ended after this time, with its locks."""

_SQLSTATE = "RWFEN"
_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")

# FOR SHARE: a claim waits for a write that was begun before it, and a write that comes later sees
# the claim.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS ragwright_fences "
    "(thread_id text PRIMARY KEY, newest bigint NOT NULL)",
    f"""
CREATE OR REPLACE FUNCTION ragwright_check_fence() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  run text := CASE WHEN TG_OP = 'DELETE' THEN OLD.thread_id ELSE NEW.thread_id END;
  held bigint := coalesce(nullif(current_setting('ragwright.fence', true), ''), '-1')::bigint;
  latest bigint;
BEGIN
  SELECT newest INTO latest FROM ragwright_fences WHERE thread_id = run FOR SHARE;
  IF latest > held THEN
    RAISE EXCEPTION 'run % was overtaken by another attempt', run USING ERRCODE = '{_SQLSTATE}';
  END IF;
  RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$""",
    *(
        f"CREATE OR REPLACE TRIGGER ragwright_fence BEFORE INSERT OR UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION ragwright_check_fence()"
        for table in _TABLES
    ),
)

_CLAIM = """
INSERT INTO ragwright_fences VALUES (%s, %s)
ON CONFLICT (thread_id) DO UPDATE SET newest = EXCLUDED.newest
WHERE ragwright_fences.newest <= EXCLUDED.newest
"""

_ready: set[str] = set()


@asynccontextmanager
async def saver(url: str, run_id: str, fence: int) -> AsyncIterator[PostgresSaver]:
    """See `workflows.checkpoints.postgres_saver`."""
    with _told():
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=0, row_factory=dict_row
        )
    async with connection:
        opened = PostgresSaver(connection, serde=strict_serializer())
        with _told():
            if url not in _ready:
                await _set_up(opened)
                _ready.add(url)
            await opened.claim(run_id, fence)
        yield opened


async def _set_up(saver: PostgresSaver) -> None:
    """Make the tables, one worker at a time; what is there already stays."""
    connection = saver.conn
    assert isinstance(connection, psycopg.AsyncConnection)
    # Tried again rather than waited for: a waiting statement would hold up CREATE INDEX
    # CONCURRENTLY, which waits for all others.
    while True:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s) AS got", (SETUP_LOCK,))
        row = await cursor.fetchone()
        if row is not None and row["got"]:
            break
        await asyncio.sleep(0.05)
    try:
        await saver.setup()
        async with connection.transaction():
            for statement in _SCHEMA:
                await connection.execute(statement)
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", (SETUP_LOCK,))


class PostgresSaver(AsyncPostgresSaver):
    """LangGraph's saver, fenced, with errors that say what to do."""

    async def claim(self, run_id: str, fence: int) -> None:
        """Take a run over from all smaller fences; raises Fenced where there is a larger."""
        assert isinstance(self.conn, psycopg.AsyncConnection)
        await self.conn.execute("SELECT set_config('ragwright.fence', %s, false)", (str(fence),))
        await self.conn.execute(
            "SELECT set_config('idle_in_transaction_session_timeout', %s, false)",
            (f"{IDLE_SECONDS}s",),
        )
        taken = await self.conn.execute(_CLAIM, (run_id, fence))
        if not taken.rowcount:
            raise Fenced(f"run {run_id} was overtaken by another attempt; this one writes nothing")

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint; raises Fenced, NotKept."""
        with _told():
            return await super().aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Keep what one task of a superstep wrote; raises Fenced, NotKept."""
        with _told():
            await super().aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove every checkpoint of a run; raises Fenced, NotKept."""
        with _told():
            await super().adelete_thread(thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove old checkpoints ("keep_latest") or all ("delete"); raises Fenced, NotKept."""
        with _told():
            await super().aprune(thread_ids, strategy=strategy)


@contextmanager
def _told() -> Iterator[None]:
    """Postgres's errors as what they mean for the run; the URL, which holds a password, is kept."""
    try:
        yield
    except psycopg.Error as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        if error.sqlstate == _SQLSTATE:
            raise Fenced(f"{told}; this one writes nothing more") from error
        raise NotKept(
            f"the checkpoints of this run cannot be written: {told}; see that the Postgres server "
            "of RAGWRIGHT_POSTGRES_URL runs and lets this user in, then resume the run"
        ) from error
