"""Cost of a superstep of a compiled workflow against the same graph in plain LangGraph.

Ours runs with events, journal, budget and ledger on; the peer does the same arithmetic in bare
functions, with routing written as LangGraph likes it best (a coroutine).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from tests.bench.figures import Figure, against, alone, pairs
from workflows.checkpoints import sqlite_saver
from workflows.loading import Workflow, load_workflow
from workflows.resources import ResourcePool, Resources
from workflows.runtime import RunOptions, execute
from workflows.store import FolderJournal

SUPERSTEPS = 200
PAIRS = 15

WORKFLOW = f"""
name: count
inputs: {{to: {{type: integer, default: {SUPERSTEPS}}}}}
state: {{n: 0}}
nodes:
  a: {{use: set, with: {{values: {{n: "${{state.n + 1}}"}}}}}}
  b: {{use: set, with: {{values: {{n: "${{state.n + 1}}"}}}}}}
edges:
  - {{from: start, to: a}}
  - {{from: a, to: b}}
  - {{from: b, when: "state.n < inputs.to", to: a}}
  - {{from: b, to: end}}
outputs: {{n: "${{state.n}}"}}
budget: {{tokens: 1000000, seconds: 3600}}
limits: {{steps: {SUPERSTEPS + 10}}}
"""


class _State(TypedDict, total=False):
    n: int


def run() -> list[Figure]:
    """Seconds per superstep, bare and with the SQLite saver, and start-up of the command line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "count.yaml"
        file.write_text(WORKFLOW, encoding="utf-8")
        workflow = load_workflow(file)
        figures = [
            _compare("superstep_bare", folder, workflow, saved=False),
            _compare("superstep_sqlite", folder, workflow, saved=True),
            alone("cli_help_cpu", "s", [_cpu_seconds("--help") for _ in range(5)]),
            alone(
                "cli_validate_cpu",
                "s",
                [_cpu_seconds("workflows", "validate", str(file)) for _ in range(5)],
            ),
        ]
    return figures


def _compare(name: str, folder: Path, workflow: Workflow, saved: bool) -> Figure:
    ours = _timed(folder, saved, lambda saver, journal: _ours(workflow, saver, journal))
    peer = _timed(folder, saved, lambda saver, journal: _plain(saver))
    return against(name, "ms", "plain LangGraph", pairs(ours, peer, PAIRS))


def _timed(
    folder: Path, saved: bool, work: Callable[[Any, FolderJournal], Awaitable[None]]
) -> Callable[[], float]:
    """A function that does the work on fresh files and returns milliseconds a superstep."""
    count = iter(range(10**6))

    async def once() -> float:
        stem = folder / f"{id(work)}-{next(count)}"
        with stem.with_suffix(".jsonl").open("ab", buffering=0) as lines:
            journal = FolderJournal(lines)
            if not saved:
                return await _clock(work(None, journal))
            async with sqlite_saver(stem.with_suffix(".sqlite")) as saver:
                await saver.setup()
                return await _clock(work(saver, journal))

    return lambda: asyncio.run(once())


async def _clock(work: Awaitable[None]) -> float:
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) / SUPERSTEPS * 1e3


async def _ours(workflow: Workflow, saver: Any, journal: FolderJournal) -> None:
    resources = Resources(workflow.spec, ResourcePool())
    inputs = workflow.check_inputs({})
    options = RunOptions("bench", sinks=[journal])
    result = await execute(workflow, inputs, resources, options, saver)
    assert result.outputs == {"n": SUPERSTEPS}, result.error


async def _plain(saver: Any) -> None:
    async def add(state: _State) -> _State:
        return {"n": state["n"] + 1}

    async def route(state: _State) -> str:
        return "a" if state["n"] < SUPERSTEPS else END

    graph = StateGraph(_State)
    graph.add_node("a", add)
    graph.add_node("b", add)
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    graph.add_conditional_edges("b", route, ["a", END])
    config: Any = {"configurable": {"thread_id": "bench"}, "recursion_limit": SUPERSTEPS + 10}
    durability: Any = "sync" if saver is not None else None
    result = await graph.compile(saver).ainvoke({"n": 0}, config, durability=durability)
    assert result["n"] == SUPERSTEPS


def _cpu_seconds(*arguments: str) -> float:
    """User and system seconds of one `ragwright` process."""
    code = (
        "import resource, subprocess, sys; "
        "subprocess.run([sys.executable, '-m', 'api.cli', *sys.argv[1:]], check=True, "
        "stdout=subprocess.DEVNULL); u = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(u.ru_utime + u.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return float(done.stdout)
