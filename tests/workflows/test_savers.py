"""Checkpoint savers on real servers: LangGraph's conformance suite, fences, pruning, set-up."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Any, TypedDict
from uuid import uuid4

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import StateGraph
from langgraph.types import Command, interrupt

from tests.postgres import NoPostgres, postgres
from workflows.checkpoints import (
    JournalFirst,
    discard,
    postgres_saver,
    prune,
    sqlite_saver,
)
from workflows.keeping import Fenced, NotKept

Saver = BaseCheckpointSaver[Any]
Open = Callable[[str, int], AbstractAsyncContextManager[Saver]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres())
        except NoPostgres as error:
            pytest.skip(str(error))
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the saver of a run under a fence."""
    if request.param == "sqlite":
        return lambda run_id, fence: sqlite_saver(tmp_path / f"{run_id}.sqlite", fence)
    url = request.getfixturevalue("server")
    return lambda run_id, fence: postgres_saver(url, run_id, fence)


def config(run_id: str, namespace: str = "", **more: Any) -> Any:
    return {"configurable": {"thread_id": run_id, "checkpoint_ns": namespace, **more}}


async def put(saver: Saver, run_id: str) -> Any:
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"x": ["a list is a blob of its own"]}
    checkpoint["channel_versions"] = {"x": saver.get_next_version(None, None)}
    return await saver.aput(
        config(run_id), checkpoint, {"source": "loop", "step": 1}, checkpoint["channel_versions"]
    )


def test_a_saver_keeps_to_the_contract_of_langgraph(opener: Open) -> None:
    async def factory() -> AsyncIterator[Saver]:
        async with opener(uuid4().hex, 1) as saver:
            yield saver

    report = asyncio.run(validate(checkpointer_test(name="ours")(factory)))
    failures = [line for r in report.results.values() for line in r.failures or ()]
    assert report.passed_all_base(), failures
    assert report.results["prune"].passed, failures


def test_a_late_writer_is_refused_and_changes_nothing(opener: Open) -> None:
    async def scene() -> None:
        run_id = uuid4().hex
        async with opener(run_id, 1) as old:
            kept = await put(old, run_id)
            async with opener(run_id, 2) as new:
                before = await new.aget_tuple(config(run_id))
                for act in (
                    lambda: put(old, run_id),
                    lambda: old.aput_writes(kept, [("x", 1)], "task"),
                    lambda: discard(old, run_id),
                    lambda: old.aprune([run_id], strategy="delete"),
                ):
                    with pytest.raises(Fenced, match="overtaken"):
                        await act()
                assert await new.aget_tuple(config(run_id)) == before
                latest = await put(new, run_id)
                found = await new.aget_tuple(config(run_id))
                assert found is not None and found.config == latest
            with pytest.raises(Fenced):
                async with opener(run_id, 1):
                    pass
            async with opener(run_id, 2) as again:
                await put(again, run_id)

    asyncio.run(scene())


# Opens the saver with fence 1, writes, then stops itself between check and write: inside the
# transaction where `inside`, else before it.
LATE = """
import asyncio, os, signal, sys
from workflows.checkpoints import postgres_saver, sqlite_saver
from tests.workflows.test_savers import put

kind, place, run_id = sys.argv[1:4]

async def main():
    opened = sqlite_saver(place, 1) if kind == "sqlite" else postgres_saver(place, run_id, 1)
    async with opened as saver:
        await put(saver, run_id)
        print("ready", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            await put(saver, run_id)
        except Exception as error:
            print(type(error).__name__, flush=True)
        else:
            print("wrote", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_stopped_process_that_wakes_up_cannot_write(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run_id = uuid4().hex
    place = str(tmp_path / "c.sqlite") if kind == "sqlite" else request.getfixturevalue("server")
    child = subprocess.Popen(
        [sys.executable, "-c", LATE, kind, place, run_id], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "T":
            time.sleep(0.01)

        async def take_over() -> Any:
            opened = (
                sqlite_saver(Path(place), 2)
                if kind == "sqlite"
                else postgres_saver(place, run_id, 2)
            )
            async with opened as saver:
                await put(saver, run_id)
                before = await saver.aget_tuple(config(run_id))
                os.kill(child.pid, signal.SIGCONT)
                assert await asyncio.to_thread(child.stdout.readline) == "Fenced\n"  # type: ignore[union-attr]
                assert await saver.aget_tuple(config(run_id)) == before

        asyncio.run(take_over())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]


def test_a_claim_waits_for_the_write_that_was_begun_before_it(server: str) -> None:
    """A writer between check and write: its write counts as earlier, never as later."""

    async def scene() -> None:
        run_id = uuid4().hex
        async with postgres_saver(server, run_id, 1) as old:
            await put(old, run_id)
            connection = old.conn  # type: ignore[attr-defined]
            async with connection.transaction():
                await put(old, run_id)
                claiming = asyncio.ensure_future(_claim(server, run_id))
                await asyncio.sleep(0.3)
                assert not claiming.done(), "the check has been made and holds the fence"
            before = await claiming
            assert before == 2, "the successor sees what was written before it"
            with pytest.raises(Fenced):
                await put(old, run_id)

    asyncio.run(scene())


async def _claim(url: str, run_id: str) -> int:
    async with postgres_saver(url, run_id, 2) as saver:
        return len([one async for one in saver.alist(config(run_id))])


class Counted(TypedDict, total=False):
    n: int
    answer: str


def test_pruning_keeps_what_a_resume_needs(opener: Open) -> None:
    """A loop of many supersteps with a sub-graph, pruned on its way, asked, and gone on with."""

    class Quiet:
        def __call__(self, event: Any) -> None: ...

        async def flush(self) -> None: ...

    async def one(state: Counted) -> Counted:
        inner: Any = StateGraph(Counted)
        inner.add_node("add", lambda state: {"n": state["n"] + 1})
        inner.add_edge("__start__", "add")
        return await inner.compile().ainvoke(state)  # type: ignore[no-any-return]

    async def ask(state: Counted) -> Counted:
        return {"answer": interrupt("?")}

    graph: Any = StateGraph(Counted)
    graph.add_node("one", one)
    graph.add_node("ask", ask)
    graph.add_edge("__start__", "one")
    graph.add_conditional_edges("one", lambda s: "one" if s["n"] < 40 else "ask", ["one", "ask"])

    async def scene() -> None:
        run_id = uuid4().hex
        thread = {**config(run_id), "recursion_limit": 99}
        del thread["configurable"]["checkpoint_ns"]
        async with opener(run_id, 1) as saver:
            app = graph.compile(checkpointer=JournalFirst(saver, Quiet()))
            state = await app.ainvoke({"n": 0}, thread, durability="sync")
            assert [one.value for one in state["__interrupt__"]] == ["?"]
            every = [one async for one in saver.alist({"configurable": {"thread_id": run_id}})]
            assert len(every) < 60, "pruned on its way: there were more than 160"
            await prune(saver, run_id)
            left = [one async for one in saver.alist({"configurable": {"thread_id": run_id}})]
            assert len(left) == 1
        async with opener(run_id, 2) as saver:
            app = graph.compile(checkpointer=saver)
            done = await app.ainvoke(Command(resume="yes"), thread, durability="sync")
            assert (done["n"], done["answer"]) == (40, "yes")
            await discard(saver, run_id)
            assert await saver.aget_tuple(thread) is None

    asyncio.run(scene())


def test_two_workers_may_set_the_tables_up_at_once(server: str) -> None:
    """In an empty database, from processes that start together."""
    name = f"fresh_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = server.replace("/postgres?", f"/{name}?")
    code = (
        "import asyncio, sys\n"
        "from workflows.checkpoints import postgres_saver\n"
        "from tests.workflows.test_savers import put\n"
        "async def main():\n"
        "    async with postgres_saver(sys.argv[1], sys.argv[2], 1) as saver:\n"
        "        await put(saver, sys.argv[2])\n"
        "asyncio.run(main())\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, url, f"run{n}"], stderr=subprocess.PIPE)
        for n in range(3)
    ]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(DISTINCT thread_id) FROM checkpoints").fetchone()
    assert row == (3,)


def test_a_database_that_cannot_be_used_is_said_so(tmp_path: Path, server: str) -> None:
    async def scene() -> None:
        wrong = server.replace("/postgres?", "/nowhere?")
        with pytest.raises(NotKept, match=r"nowhere.*RAGWRIGHT_POSTGRES_URL"):
            async with postgres_saver(wrong, "r", 1):
                pass
        (tmp_path / "c.sqlite").write_bytes(b"no database at all" * 100)
        with pytest.raises(NotKept, match="not a database"):
            async with sqlite_saver(tmp_path / "c.sqlite"):
                pass

    asyncio.run(scene())


def test_a_full_disk_is_said_so_and_loses_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        file = tmp_path / "c.sqlite"
        async with sqlite_saver(file) as saver:
            kept = await put(saver, "r")
            await saver.conn.execute("PRAGMA max_page_count = 1")
            with pytest.raises(NotKept, match="full"):
                for _ in range(100):
                    kept = await put(saver, "r")
            await saver.conn.execute("PRAGMA max_page_count = 1000000")
            found = await saver.aget_tuple(config("r"))
            assert found is not None and found.config == kept
            await put(saver, "r")
        sqlite3.connect(file).close()

    asyncio.run(scene())
