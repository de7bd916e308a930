"""Runs prepared here and performed elsewhere: the submitted texts, the checks, the tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from inference import Capability
from inference.engine import NativeConfig
from tests.workflows.replay import ReplayEngine
from workflows.errors import WorkflowInputError
from workflows.events import Event, StepFinished
from workflows.keeping import Fenced, Keeping
from workflows.past import Past
from workflows.resources import ResourcePool
from workflows.runs import RunOrder, perform, prepare, workflow_of
from workflows.runtime import RunResult, RunStatus
from workflows.store import RunManifest

INNER = """
name: inner
nodes: {say: {use: set, with: {values: {text: first}}}}
edges: [{from: start, to: say}, {from: say, to: end}]
outputs: {text: "${state.text}"}
"""
OUTER = """
name: outer
resources: {engine: {use: native}}
inputs: {topic: {type: string}}
nodes:
  part: {use: workflow, with: {name: parts/inner.yaml}}
  recall: {use: workflow, with: {name: closed_book, inputs: {question: "${inputs.topic}"}}, save: {outputs: c}}
  say: {use: generate, with: {prompt: "about ${inputs.topic}", max_tokens: 5}}
edges:
  - {from: start, to: part}
  - {from: part, to: recall}
  - {from: recall, to: say}
  - {from: say, to: end}
outputs: {part: "${state.outputs.text}", text: "${state.text}"}
"""  # noqa: E501


class Lines:
    """A journal in memory; `fenced` after so many flushes."""

    def __init__(self, fenced: int = 10**6) -> None:
        self.events: list[Event] = []
        self.flushed = 0
        self.left = fenced

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    async def flush(self) -> None:
        self.flushed = len(self.events)
        self.left -= 1
        if self.left <= 0:
            raise Fenced("another took over")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "inner.yaml").write_text(INNER, encoding="utf-8")
    (tmp_path / "outer.yaml").write_text(OUTER, encoding="utf-8")
    return tmp_path


def order(folder: Path, **options: Any) -> RunOrder:
    return RunOrder(str(folder / "outer.yaml"), {"topic": "owls"}, **options)


def carry_out(
    manifest: RunManifest,
    engine: ReplayEngine,
    journal: Lines,
    saver: Any = None,
    past: Past | None = None,
) -> RunResult:
    pool = ResourcePool()
    pool.adopt(NativeConfig(), engine)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield saver or InMemorySaver()

    return asyncio.run(perform(manifest, pool, Keeping(journal, opened, past)))


def test_a_run_uses_the_texts_it_was_submitted_with(folder: Path) -> None:
    manifest = prepare(order(folder, tenant="acme"))
    assert set(manifest.files) == {"outer.yaml", "parts/inner.yaml", "shipped:closed_book"}
    travelled = RunManifest(**json.loads(json.dumps(asdict(manifest), sort_keys=True)))
    assert travelled == manifest
    for file in (folder / "outer.yaml", folder / "parts" / "inner.yaml"):
        file.write_text("name: [", encoding="utf-8")
    assert workflow_of(travelled).sha256 == manifest.workflow_sha256
    engine = ReplayEngine(["one", "two"])
    result = carry_out(travelled, engine, Lines())
    assert (result.status, result.outputs) == (
        RunStatus.COMPLETED,
        {"part": "first", "text": "two"},
    )
    assert {request.tenant for request in engine.requests} == {"acme"}


def test_a_shipped_workflow_travels_as_its_text() -> None:
    manifest = prepare(RunOrder("closed_book", {"question": "x"}))
    changed = manifest.files["shipped:closed_book"].replace("short phrase", "long phrase")
    workflow = workflow_of(
        RunManifest(**{**asdict(manifest), "files": {"shipped:closed_book": changed}})
    )
    assert "long phrase" in workflow.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"engine": "nativ"}, "did you mean 'native'"),
        ({"run_id": "../up"}, "run id"),
        ({"budget": {"tokens": -1}}, "budget tokens"),
        ({"docs": Path("x")}, "searches no documents"),
    ],
)
def test_a_bad_order_is_refused_before_it_begins(
    folder: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(Exception, match=problem) as caught:
        prepare(order(folder, **options))
    assert type(caught.value).__name__.endswith("InputError")


def test_the_journal_is_flushed_before_each_checkpoint_and_may_end_the_run(folder: Path) -> None:
    class Watching(InMemorySaver):
        async def aput(self, *arguments: Any) -> Any:
            assert journal.flushed == len(journal.events), "a checkpoint ahead of its journal"
            return await super().aput(*arguments)

    journal = Lines()
    manifest = prepare(order(folder))
    assert carry_out(manifest, ReplayEngine(["x"]), journal, Watching()).error is None
    fenced = Lines(fenced=4)
    with pytest.raises(Fenced):
        carry_out(manifest, ReplayEngine(["x"]), fenced)
    assert not any(event.type == "run_finished" for event in fenced.events)


def resuming() -> ReplayEngine:
    able = frozenset({Capability.CHAT, Capability.STREAM, Capability.RESUME})
    return ReplayEngine(["a b c"], capabilities=able)


def _noted(
    folder: Path, engine: ReplayEngine, tokens: Sequence[int] = (0, 1), request: str | None = None
) -> dict[str, Any]:
    """Notes of the last step where an earlier attempt had produced tokens of it."""
    manifest = prepare(order(folder))
    first = Lines()
    carry_out(manifest, ReplayEngine(["a b c"]), first)
    asked = [event for event in first.events if event.type == "tokens_produced"][-1]
    key = (asked.task, 1)  # type: ignore[attr-defined]
    made = asked.request if request is None else request  # type: ignore[attr-defined]
    past = Past(produced={key: tuple(tokens)}, requests={key: made})
    journal = Lines()
    carry_out(manifest, engine, journal, past=past)
    step = next(e for e in journal.events if isinstance(e, StepFinished) and e.node == "say")
    return dict(step.notes)


def test_tokens_go_on_only_where_the_same_is_asked_of_an_engine_that_can(folder: Path) -> None:
    engine = resuming()
    assert _noted(folder, engine)["resumed_tokens"] == 2
    assert engine.requests[-1].resumed == (0, 1)
    for engine, options, why in (
        (resuming(), {"request": "other"}, "something else"),
        (ReplayEngine(["a b c"]), {}, "cannot go on inside"),
    ):
        notes = _noted(folder, engine, **options)
        assert why in notes["not_resumed"] and "resumed_tokens" not in notes
        assert engine.requests[-1].resumed == ()


def test_an_engine_that_does_not_stream_says_what_a_kill_would_lose(folder: Path) -> None:
    engine = ReplayEngine(["a"], capabilities=frozenset({Capability.CHAT}))
    journal = Lines()
    assert carry_out(prepare(order(folder)), engine, journal).error is None
    steps = [e for e in journal.events if isinstance(e, StepFinished) and e.node == "say"]
    assert "does not stream" in steps[0].notes["warm_resume"]


def test_an_index_that_changed_is_refused(folder: Path) -> None:
    manifest = RunManifest(**{**asdict(prepare(order(folder))), "index": str(folder)})
    with pytest.raises(Exception, match="manifest") as caught:
        carry_out(manifest, ReplayEngine(["a"]), Lines())
    assert not isinstance(caught.value, AssertionError)
    with pytest.raises(WorkflowInputError, match="not among the files"):
        workflow_of(RunManifest(**{**asdict(manifest), "files": {"outer.yaml": OUTER}}))
