"""Kills runs of workflows at many places and resumes each; a program of its own.

It imports and opens everything once and forks: one child runs and kills itself at an event,
another goes on in its folder. Standard output is one JSON object: by name of an order what the run
that was not killed came to, and what each other did.

`python -m tests.chaos.forks MODEL ORDERS`, where ORDERS is JSON: by name an object with
`workflow`, `inputs`, `docs` and `seed`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from workflows.checkpoints import sqlite_saver
from workflows.keeping import Keeping
from workflows.resources import Overrides, ResourcePool, Resources
from workflows.runs import RunOrder, perform, prepare, workflow_of
from workflows.store import RunFolder, RunManifest

Facts = dict[str, Any]

PATIENCE = 120
"""Seconds a child may take; it needs less than one."""
GRACE = 10
"""Seconds a thread that was joined may take to be gone; it needs less than a thousandth of one."""


async def attempt(manifest: RunManifest, pool: ResourcePool, kill_at: int | None) -> Facts:
    """One attempt at the run, cut off by SIGKILL at the event of a number."""
    folder = RunFolder.existing(manifest.run_id)
    began = (folder.path / "journal.jsonl").exists()
    seen: list[Facts] = []

    def watch(event: Any) -> None:
        seen.append(event.to_dict())
        if len(seen) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with folder.working() as journal:
        past = folder.past() if began else None
        keeping = Keeping(journal, lambda: sqlite_saver(folder.checkpoints), past)
        result = await perform(manifest, pool, keeping, sinks=[watch])
        async with sqlite_saver(folder.checkpoints) as saver:
            config: Any = {"configurable": {"thread_id": manifest.run_id}}
            found = await saver.aget_tuple(config)
    assert found is not None
    resources = resources_of(manifest, pool)
    totals = [(await pool.engine(one)).totals.answers for one in resources.engines.values()]  # type: ignore[attr-defined]
    return {
        "result": result.to_dict(),
        "state": found.checkpoint["channel_values"],
        "events": [event for event in seen if event["type"] != "run_finished"],
        "decoded": sum(one.completion_tokens for one in totals),
        "resumed": sum(one.resumed_tokens for one in totals),
    }


def resources_of(manifest: RunManifest, pool: ResourcePool) -> Resources:
    index = None if manifest.index is None else Path(manifest.index)
    overrides = Overrides(None, manifest.model)
    return Resources(workflow_of(manifest).spec, pool, index=index, overrides=overrides)


def forked(act: Callable[[], Facts]) -> tuple[int, Facts | None]:
    """Exit status or signal of a child that acts, and what it found.

    A lock that another thread holds while this one forks is never released in the child, so there
    may be no other; a child that hangs all the same says where and fails.
    """
    wait_until_alone()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as out:
                json.dump(act(), out, default=sorted)  # a join keeps a set
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def wait_until_alone() -> None:
    """Returns when no other thread runs; the system ends one a moment after Python joined it."""
    ends = time.monotonic() + GRACE
    while len(list(Path("/proc/self/task").iterdir())) > 1:
        assert time.monotonic() < ends, f"other threads go on: {threading.enumerate()}"
        time.sleep(0.001)


def places(events: list[Facts], draw: random.Random) -> dict[int, str]:
    """Numbers of events to be killed at: around every step, and inside it where it tells more."""
    found: dict[int, str] = {}
    inside: dict[str, list[int]] = {}
    for number, event in enumerate(events, start=1):
        if event["type"] in ("step_started", "step_finished"):
            found[number] = f"{event['type']} {event['node']}"
        elif "task" in event:
            inside.setdefault(event["task"], []).append(number)
    for numbers in inside.values():
        number = draw.choice(numbers)
        event = events[number - 1]
        found[number] = f"{event['type']} {event['node']}"
    return found


def killed_everywhere(name: str, order: Facts, model: str, pool: ResourcePool) -> Facts:
    """The run that is not killed, and one for every place to be killed at."""
    docs = {"docs": Path(order["docs"])} if order["docs"] else {}
    prepared = prepare(RunOrder(order["workflow"], order["inputs"], model=model, **docs))

    def fresh(suffix: str) -> RunManifest:
        manifest = replace(prepared, run_id=f"{name}.{suffix}")
        RunFolder.create(manifest)
        return manifest

    def run(manifest: RunManifest, kill_at: int | None = None) -> Callable[[], Facts]:
        return lambda: asyncio.run(attempt(manifest, pool, kill_at))

    manifest = fresh("whole")
    asyncio.run(resources_of(manifest, pool).open())
    status, whole = forked(run(manifest))
    assert status == 0 and whole is not None
    kills = []
    for number, place in places(whole["events"], random.Random(order["seed"])).items():
        manifest = fresh(str(number))
        status, _ = forked(run(manifest, number))
        journal = RunFolder.existing(manifest.run_id).path / "journal.jsonl"
        lines = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
        journalled = sum(len(line.get("token_ids", ())) for line in lines)
        again, resumed = forked(run(manifest))
        kills.append(
            {
                "place": place,
                "status": status,
                "journalled": journalled,
                "again": again,
                "resumed": resumed,
            }
        )
    return {"whole": whole, "kills": kills}


def main(model: str, orders: str) -> None:
    tqdm.monitor_interval = 0
    pool = ResourcePool()
    named: dict[str, Facts] = json.loads(orders)
    found = {name: killed_everywhere(name, order, model, pool) for name, order in named.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:3])
