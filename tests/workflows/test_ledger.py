"""The ledger: what all runs together say they spent is what the engine counted, to the last bit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference import Budget
from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from tests.inference.conftest import open_engine
from tests.inference.tiny import checkpoint
from workflows.events import Event, ModelCalled, TokensProduced
from workflows.ledger import costs_of, ledger_of
from workflows.loading import load_workflow
from workflows.past import past_of
from workflows.resources import ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, RunStatus, execute

BUSY = """
name: busy
inputs: {words: {type: list, default: [a, b, c, d]}}
resources: {engine: {use: native}}
nodes:
  each:
    use: generate
    with: {prompt: "about ${word} in short", max_tokens: 12}
    over: "${inputs.words}"
    item: word
    into: parts
    sampling: {temperature: 0.9}
  inner: {use: workflow, with: {name: closed_book, inputs: {question: Why?, max_tokens: 9}}}
  last: {use: generate, with: {prompt: "${join(pluck(state.parts, 'text'), ' ')}", max_tokens: 7}}
edges:
  - {from: start, to: [each, inner]}
  - {from: [each, inner], to: last}
  - {from: last, to: end}
outputs: {text: "${state.text}"}
"""
ONE = """
name: one
resources: {engine: {use: native}}
nodes:
  ask: {use: generate, with: {prompt: hello, max_tokens: 2000}, OPTIONS}
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {text: "${state.text}"}
"""
RETRIED = ONE.replace("OPTIONS", "timeout: 0.2, retry: {attempts: 2, backoff_seconds: 0}")
STUCK = ONE.replace("OPTIONS", "grammar: {regex: 'abaQ+'}")
LONG = ONE.replace(", OPTIONS", "")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeEngine]:
    folder = checkpoint(tmp_path_factory.mktemp("model"), endless=True, context=4096)
    file = folder / "tokenizer.json"
    words = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    vocabulary["\u0100" * 3] = vocabulary.pop("Q")  # this model can write anything but a Q
    file.write_text(json.dumps(words), encoding="utf-8")
    engine = open_engine(folder, prefix_cache_bytes=2**20)
    yield engine
    engine.close()


class Desk:
    """Runs over one engine; keeps what they said."""

    def __init__(self, engine: NativeEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.results: list[RunResult] = []
        self.events: list[Event] = []

    async def run(self, source: str, *, cancel_at: int = 0, **options: Any) -> RunResult:
        file = self.folder / "w.yaml"
        file.write_text(source, encoding="utf-8")
        workflow, pool = load_workflow(file), ResourcePool()
        pool.adopt(NativeConfig(), self.engine)
        resources = Resources(workflow.spec, pool)
        heard: list[Event] = []
        run = RunOptions("r", sinks=[heard.append], journalled=True, **options)
        task = asyncio.ensure_future(execute(workflow, workflow.check_inputs({}), resources, run))
        while cancel_at and not task.done():
            await asyncio.sleep(0.001)
            if sum(isinstance(event, TokensProduced) for event in heard) >= cancel_at:
                task.cancel()
                break
        result = await task
        self.results.append(result)
        self.events += heard
        return result


def test_all_ledgers_add_up_to_the_count_of_the_engine(
    engine: NativeEngine, tmp_path: Path
) -> None:
    desk = Desk(engine, tmp_path)

    async def scene() -> None:
        before = engine.totals.answers
        assert before.requests == 0
        await asyncio.gather(*(desk.run(BUSY, seed=n) for n in range(3)))
        retried = await desk.run(RETRIED)
        assert (retried.error or {})["code"] == "timeout"
        assert retried.ledger["run"]["model_calls"] == 2
        stuck = await desk.run(STUCK)
        assert stuck.status is RunStatus.FAILED and stuck.ledger["run"]["forwards"] > 0
        cancelled = await desk.run(LONG, cancel_at=5)
        assert cancelled.status is RunStatus.CANCELLED
        assert 5 <= cancelled.ledger["nodes"]["ask"]["completion_tokens"] < 2000
        cut = await desk.run(LONG, budget=Budget(tokens=60))
        assert cut.steps[0]["notes"]["max_tokens_cut_by_budget"] < 60
        over = await desk.run(BUSY, budget=Budget(tokens=90))
        assert over.status is RunStatus.INTERRUPTED
        late = await desk.run(LONG, budget=Budget(seconds=0.3))
        assert late.ledger["run"]["model_calls"] == 1

    asyncio.run(scene())
    ledgers = [result.ledger["run"] for result in desk.results]
    totals = engine.totals.answers
    assert engine.totals.lost.requests == 0
    for mine, theirs in (
        ("model_calls", "requests"),
        ("prompt_tokens", "prompt_tokens"),
        ("cached_tokens", "cached_tokens"),
        ("completion_tokens", "completion_tokens"),
        ("resumed_tokens", "resumed_tokens"),
        ("forwards", "forwards"),
        ("kv_bytes", "kv_bytes"),
        ("model_seconds", "seconds"),
    ):
        assert sum(ledger[mine] for ledger in ledgers) == getattr(totals, theirs), mine
    for result in desk.results:
        for name in ("prompt_tokens", "completion_tokens", "model_calls", "forwards", "kv_bytes"):
            parts = sum(entry[name] for entry in result.ledger["nodes"].values())
            assert parts == result.ledger["run"][name]
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "model_calls"):
            assert result.usage[name] == result.ledger["run"][name]
    called = [event for event in desk.events if isinstance(event, ModelCalled)]
    assert len(called) == totals.requests
    assert {event.engine for event in called} == {"native"}
    assert sum(event.usage.completion_tokens for event in called) == totals.completion_tokens
    produced = [event for event in desk.events if isinstance(event, TokensProduced)]
    assert sum(len(event.token_ids) for event in produced) == totals.completion_tokens


def test_idealized_seconds_add_up_where_they_are_known() -> None:
    known, unknown = {"idealized_seconds": 0.5, "forwards": 2, "peak_kv_bytes": 9}, {"forwards": 1}
    assert costs_of([unknown])["idealized_seconds"] is None
    costs = costs_of([known, unknown, {**known, "peak_kv_bytes": 4}])
    assert (costs["idealized_seconds"], costs["forwards"]) == (1.0, 5)
    assert (costs["kv_bytes"], costs["peak_kv_bytes"]) == (13, 9)
    assert ledger_of([], 1.5)["run"]["seconds"] == 1.5


USAGE = {
    "prompt_tokens": 7,
    "cached_tokens": 0,
    "completion_tokens": 3,
    "model_calls": 1,
    "retrievals": 0,
    "seconds": 0.5,
}


def started(task: str) -> dict[str, Any]:
    return {
        "type": "step_started",
        "node": "n",
        "kind": "generate",
        "task": task,
        "started_at": 5.0,
    }


def tokens(task: str, at: int, *ids: int, call: int = 1) -> dict[str, Any]:
    return {
        "type": "tokens_produced",
        "task": task,
        "call": call,
        "at": at,
        "token_ids": list(ids),
        "request": "f",
    }


def finished(task: str, error: str = "") -> dict[str, Any]:
    return {
        **started(task),
        "type": "step_finished",
        "seconds": 1.0,
        "elapsed": 9.0,
        "usage": USAGE,
        "notes": {},
        **({"error": {"code": error, "message": ""}} if error else {}),
    }


def test_a_killed_step_is_accounted_from_the_journal() -> None:
    called = {"type": "model_called", "task": "1:n", "call": 1, "usage": USAGE, "stats": {}}
    called |= {"started_at": 5.0, "seconds": 2.0}
    searched = {"type": "retrieved", "task": "1:n", "queries": 2, "started_at": 8.0, "seconds": 1.0}
    lines = [
        started("1:n"),
        tokens("1:n", 0, 1, 2, 3),
        called,
        searched,
        tokens("1:n", 0, 4, 5, call=2),
    ]
    past = past_of(lines)
    [record] = past.steps
    assert record["superseded"] and record["error"]["code"] == "killed"
    assert past.usage.completion_tokens == 5 and past.usage.model_calls == 2
    assert past.usage.retrievals == 2 and record["seconds"] == 4.0
    assert past.produced == {("1:n", 1): (1, 2, 3), ("1:n", 2): (4, 5)}


def test_tokens_go_on_over_several_kills_and_not_over_a_failure() -> None:
    again = {"type": "run_started"}
    twice = [started("t"), tokens("t", 0, 1, 2), again, started("t"), tokens("t", 2, 3)]
    past = past_of([*twice, again])
    assert past.produced == {("t", 1): (1, 2, 3)}
    assert [step["usage"]["completion_tokens"] for step in past.steps] == [2, 1]
    assert past_of([*twice, finished("t", "cancelled")]).produced == {("t", 1): (1, 2, 3)}
    assert past_of([*twice, finished("t", "timeout")]).produced == {}
    assert past_of([started("t"), again]).steps == [], "what cost nothing is no record"
