"""What a trace of a run looks like: names, parents, attributes, errors, and what is left out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from api import Agent, ClosedBook, NaiveRAG, telemetry
from inference import Usage
from tests.api.agents.words import Words
from tests.workflows.replay import ReplayEngine
from workflows.events import (
    Event,
    ModelCalled,
    Retrieved,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
)

INNER = """
name: inner
nodes:
  deep: {use: set, with: {values: {x: 1}}}
edges:
  - {from: start, to: deep}
  - {from: deep, to: end}
outputs: {x: "${state.x}"}
"""
OUTER = """
name: outer
nodes:
  left: {use: set, with: {values: {a: 1}}}
  right: {use: workflow, with: {name: inner.yaml}}
  both: {use: set, with: {values: {c: 1}}}
edges:
  - {from: start, to: [left, right]}
  - {from: [left, right], to: both}
  - {from: both, to: end}
outputs: {c: "${state.c}"}
"""
CANARY = "zxqv-secret-7731"


def called(**changes: Any) -> ModelCalled:
    facts: dict[str, Any] = {
        "node": "n",
        "task": "1:n",
        "call": 1,
        "engine": "native",
        "model": "default",
        "sampling": {
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 2**64 - 1,
            "stop": ("\ud800", "x"),
        },
        "finish_reason": "stop",
        "started_at": time.time(),
        "seconds": 0.25,
        "usage": Usage(11, 4, 3, 1),
        "stats": {"forwards": 3, "kv": {"x": 1}},
    }
    return ModelCalled(**{**facts, **changes})


def events(*inner: Event, error: Mapping[str, str] | None = None) -> list[Event]:
    """A run of one node, around what happened in it."""
    end = {"status": "failed" if error else "completed", "usage": {"prompt_tokens": 11}}
    return [
        RunStarted("r1", "w", {"question": CANARY}, 3),
        StepStarted("n", "generate", "1:n"),
        *inner,
        StepFinished("n", "generate", "1:n", 0.0, 0.1, 0.1, Usage(), {"text": CANARY}, error),
        RunFinished({**end, "outputs": {"answer": CANARY}, "error": error}),
    ]


def parent(span: ReadableSpan, above: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and above.context is not None
        and span.parent.span_id == above.context.span_id
    )


def test_nodes_lie_under_the_run_and_sub_workflows_under_their_caller(
    tmp_path: Path, spans: Any
) -> None:
    (tmp_path / "inner.yaml").write_text(INNER, encoding="utf-8")
    (tmp_path / "outer.yaml").write_text(OUTER, encoding="utf-8")
    end = spans()
    with Agent.from_workflow(tmp_path / "outer.yaml") as agent:
        result = agent.run().raise_if_failed()
    seen = end()
    run = seen.pop("invoke_workflow outer")
    assert run.parent is None
    assert run.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert run.attributes["ragwright.run.id"] == result.run_id
    assert run.attributes["ragwright.run.status"] == "completed"
    assert set(seen) == {"node left", "node right", "node right/deep", "node both"}
    assert parent(seen["node right/deep"], seen["node right"])
    assert all(parent(seen[f"node {name}"], run) for name in ("left", "right", "both"))
    for span in seen.values():
        assert run.start_time <= span.start_time <= span.end_time <= run.end_time


def test_a_model_call_has_the_genai_names(spans: Any) -> None:
    end = spans()
    sink = telemetry.sink()
    for event in events(called()):
        sink(event)
    seen = end()
    call = seen["chat default"]
    assert parent(call, seen["node n"])
    assert call.kind is SpanKind.INTERNAL
    assert call.end_time - call.start_time == pytest.approx(0.25e9, abs=1e3)
    assert dict(call.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ragwright",
        "gen_ai.request.model": "default",
        "gen_ai.response.model": "default",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": str(2**64 - 1),
        "gen_ai.request.stop_sequences": ("?", "x"),
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "ragwright.node.name": "n",
        "ragwright.call": 1,
        "ragwright.stats.forwards": 3,
    }


def test_calls_of_a_server_and_failures_are_told_apart(spans: Any) -> None:
    end = spans()
    sink = telemetry.sink()
    for event in events(called(engine="openai", model="m", finish_reason="failed")):
        sink(event)
    call = end()["chat m"]
    assert call.kind is SpanKind.CLIENT
    assert call.attributes["gen_ai.provider.name"] == "openai"
    assert call.status.status_code is StatusCode.ERROR


def test_a_retrieval_is_a_span(spans: Any) -> None:
    end = spans()
    sink = telemetry.sink()
    for event in events(Retrieved("n", "1:n", "hybrid", 2, 5, 9, time.time(), 0.1)):
        sink(event)
    found = end()["retrieval hybrid"].attributes
    assert found["gen_ai.operation.name"] == "retrieval"
    counts = {name.rpartition(".")[2]: v for name, v in found.items() if "retrieval." in name}
    assert counts == {"queries": 2, "k": 5, "hits": 9}


def test_a_run_tells_of_its_searches_and_calls(spans: Any) -> None:
    end = spans()
    with NaiveRAG(engine=ReplayEngine(["x y"]), retriever=Words()) as agent:
        result = agent.run("who", k=2)
    seen = end()
    assert parent(seen["retrieval Words"], seen["node retrieve"])
    call = seen["chat replay"]
    assert parent(call, seen["node answer"])
    used = call.attributes
    assert used["gen_ai.usage.input_tokens"] == result.usage.prompt_tokens
    assert used["gen_ai.usage.output_tokens"] == result.usage.completion_tokens == 2
    assert used["gen_ai.provider.name"] == "ReplayEngine"


@pytest.mark.parametrize("content", [False, True])
def test_content_is_there_only_when_asked_for(content: bool, spans: Any) -> None:
    end = spans(log_content=content)
    error = {"code": "node_failed", "message": f"option 'query' is {CANARY!r}"}
    sink = telemetry.sink()
    for event in events(called(), error=error):
        sink(event)
    engine = ReplayEngine([f"so says {CANARY}"])
    with NaiveRAG(engine=engine, retriever=Words()) as agent:
        assert CANARY in (agent.run(CANARY).answer or "")
    seen = end()
    assert seen["node n"].status.status_code is StatusCode.ERROR
    assert seen["node n"].attributes["error.type"] == "node_failed"
    told = json.dumps([json.loads(span.to_json()) for span in seen.values()])
    assert (CANARY in told) == content
    assert ("Ruben" in told) == content, "texts of documents are content too"


@pytest.mark.parametrize("code", ["cancelled", "budget_exhausted"])
def test_a_run_that_was_stopped_is_no_error(code: str, spans: Any) -> None:
    end = spans()
    sink = telemetry.sink()
    for event in events(error={"code": code, "message": "stopped"}):
        sink(event)
    run = end()["invoke_workflow w"]
    assert run.status.status_code is StatusCode.UNSET
    assert run.attributes["error.type"] == code


def test_spans_of_an_attempt_that_breaks_off_end_too(spans: Any) -> None:
    end = spans()
    with pytest.raises(ZeroDivisionError), telemetry.traced() as sink:
        for event in events()[:2]:
            sink(event)
        raise ZeroDivisionError
    assert set(end()) == {"node n", "invoke_workflow w"}


def test_a_run_belongs_to_the_trace_it_was_asked_for_in(spans: Any) -> None:
    end = spans()
    asked = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    for parent_of in (telemetry.sink(telemetry.carrier(asked)), telemetry.sink()):
        for event in events():
            parent_of(event)
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("mine")
    with (
        tracer.start_as_current_span("mine") as mine,
        ClosedBook(engine=ReplayEngine(["x"])) as agent,
    ):
        handed_on = telemetry.inject()
        agent.run("q")
    trace = f"{mine.get_span_context().trace_id:032x}"
    assert handed_on["traceparent"].split("-")[1] == trace
    seen = end()
    assert f"{seen['invoke_workflow closed_book'].context.trace_id:032x}" == trace


def test_the_parent_of_a_remote_run_is_its_asker(spans: Any) -> None:
    end = spans()
    sink = telemetry.sink(telemetry.carrier({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}))
    for event in events():
        sink(event)
    run = end()["invoke_workflow w"]
    assert f"{run.context.trace_id:032x}" == "a" * 32
    assert run.parent is not None and f"{run.parent.span_id:016x}" == "b" * 16


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\n?"))
def test_only_a_whole_trace_context_is_handed_on(text: str) -> None:
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    kept = telemetry.carrier({"traceparent": text, "tracestate": "a=1\r\nX: y"})
    assert kept in ({}, {"traceparent": text})
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    valid = get_current_span(context).get_span_context().is_valid
    assert valid or not kept, "what the standard refuses is not handed on"


def test_nothing_is_imported_or_handed_on_while_off() -> None:
    import subprocess
    import sys

    from tests.house.source import ROOT

    code = (
        "import sys; from api import ClosedBook, telemetry\n"
        "from tests.workflows.replay import ReplayEngine\n"
        "telemetry.setup(); own = set(sys.modules)\n"
        "with ClosedBook(engine=ReplayEngine(['x'])) as agent: agent.run('q')\n"
        "assert telemetry.inject() == {}\n"
        "print(*own, '|', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    ours, all_of_it = (set(half.split()) for half in done.stdout.split("|"))
    assert not any(name.startswith("opentelemetry") for name in ours)
    # LangGraph brings along part of the SDK, but what would export is ours to load.
    assert {"opentelemetry.sdk.trace.export", "api.telemetry.pipeline"} & all_of_it == set()
