"""Spans on their way out: a real OTLP collector, one that is gone, one that never answers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from api import ClosedBook, telemetry
from api.settings import Settings
from tests.api.conftest import Ragwright
from tests.api.telemetry.test_spans import called, events
from tests.workflows.replay import ReplayEngine

SHOUT = """
name: shout
inputs: {word: {type: string}}
nodes:
  say: {use: set, with: {values: {text: "${inputs.word}!"}}}
edges:
  - {from: start, to: say}
  - {from: say, to: end}
outputs: {answer: "${state.text}"}
"""


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The address of a collector, and the resource spans that it was sent."""
    taken: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            taken.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_every_span_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        telemetry.setup(Settings(telemetry="otlp"))
        with ClosedBook(engine=ReplayEngine(["yes"])) as agent:
            result = agent.run("so?")
        sink = telemetry.sink()
        for event in events(called()):
            sink(event)
        telemetry.shutdown()
    spans = [span for r in taken for scope in r.scope_spans for span in scope.spans]
    assert {"invoke_workflow closed_book", "node answer", "chat default"} <= {
        span.name for span in spans
    }
    [run] = [span for span in spans if span.name == "invoke_workflow closed_book"]
    facts = {pair.key: pair.value for pair in run.attributes}
    assert facts["ragwright.run.id"].string_value == result.run_id
    service = {pair.key: pair.value.string_value for pair in taken[0].resource.attributes}
    assert service["service.name"] == "ragwright"


def test_the_operator_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "library desk")
    with collector() as (url, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        telemetry.setup(Settings(telemetry="otlp"))
        sink = telemetry.sink()
        for event in events():
            sink(event)
        telemetry.shutdown()
    service = {pair.key: pair.value.string_value for pair in taken[0].resource.attributes}
    assert service["service.name"] == "library desk"


@pytest.mark.parametrize("silent", [False, True], ids=["gone", "never answers"])
def test_without_a_collector_runs_go_on_and_the_end_is_soon(
    silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
        )
        if not silent:
            server.close()
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        telemetry.setup(Settings(telemetry="otlp"))
        with ClosedBook(engine=ReplayEngine(["yes"])) as agent:
            assert {result.answer for result in agent.batch(["so?"] * 20)} == {"yes"}
        began = time.monotonic()
        telemetry.shutdown(0.3)
        assert time.monotonic() - began < 5


def test_the_command_writes_spans_beside_its_one_object(
    ragwright: Ragwright, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shout.yaml").write_text(SHOUT, encoding="utf-8")
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "models"))
    monkeypatch.setenv("RAGWRIGHT_TELEMETRY", "console")
    command = ("run", tmp_path / "shout.yaml", "--input", "word=canary", "--json")
    status, out, err = ragwright(*command)
    assert (status, json.loads(out)["outputs"]) == (0, {"answer": "canary!"})
    assert '"name": "invoke_workflow shout"' in err and '"name": "node say"' in err
    assert "canary" not in err
    monkeypatch.setenv("RAGWRIGHT_LOG_CONTENT", "true")
    assert "canary!" in ragwright(*command)[2]
    monkeypatch.setenv("RAGWRIGHT_TELEMETRY", "loud")
    status, _, err = ragwright(*command)
    assert status == 2 and "RAGWRIGHT_TELEMETRY='loud'" in err and err.count("\n") == 1
