"""One trace from a request over HTTP to the spans of the worker that does the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx2
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api import Client, telemetry
from api.settings import Settings
from tests.api.http.site import Site

CANARY = "zxqv-canary-9182"


@pytest.fixture
def exported(served: Site) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry.setup(Settings(), exporter=exporter)
    try:
        yield exporter
    finally:
        telemetry.shutdown()


def test_a_run_continues_the_trace_of_its_request(
    served: Site, client: Client, exported: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{'c' * 32}-{'d' * 16}-01", "Idempotency-Key": "traced"}
    body = {"workflow": "shout", "inputs": {"word": "t"}}
    ids = set()
    with served.client(served.alpha) as http:
        for parent in (headers, {**headers, "traceparent": f"00-{'e' * 32}-{'f' * 16}-01"}):
            answer: httpx2.Response = http.post("/v1/runs", json=body, headers=parent)
            assert answer.status_code == 202, "another trace is no other order"
            ids.add(answer.json()["id"])
    [run_id] = ids
    assert client.wait(run_id).completed
    telemetry.shutdown()
    spans = {span.name: span for span in exported.get_finished_spans()}
    run = spans["invoke_workflow shout"]
    assert run.parent is not None and f"{run.parent.span_id:016x}" == "d" * 16
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {"c" * 32}


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_continues_the_trace_of_its_request(
    served: Site, exported: InMemorySpanExporter, stream: bool
) -> None:
    parent = {"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"}
    body = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 3, "stream": stream}
    with served.client(served.alpha) as http:
        plain = {**body, "model": "default"}
        answer = http.post("/v1/chat/completions", json=plain, headers=parent)
        assert answer.status_code == 200, answer.text
    telemetry.shutdown()
    [span] = exported.get_finished_spans()
    assert span.name.startswith("chat ") and CANARY not in span.to_json()
    assert span.parent is not None and f"{span.parent.span_id:016x}" == "d" * 16
    assert span.attributes is not None
    assert span.attributes["gen_ai.usage.output_tokens"] in (1, 2, 3)


def test_neither_logs_nor_spans_hold_what_runs_are_about(
    served: Site,
    client: Client,
    exported: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert client.run("shout", {"word": CANARY}).answer == CANARY * 2
    failed = client.run("quote", {"word": CANARY}, max_attempts=1)
    assert CANARY in (failed.error or {})["message"], "its owner is told"
    with pytest.raises(Exception, match="word"):
        client.run("shout", {"word": [CANARY]})
    telemetry.shutdown()
    told = "".join(span.to_json() for span in exported.get_finished_spans())
    assert "invoke_workflow quote" in told
    for secret in (CANARY, served.alpha.rpartition("_")[2]):
        assert secret not in told
        assert secret not in caplog.text
