"""Tracing into memory, ended with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api import telemetry
from api.settings import Settings

Traced = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    telemetry.shutdown()


@pytest.fixture
def spans() -> Callable[..., Traced]:
    """Begin to trace; the result ends tracing and gives the spans by name."""

    def begin(**settings: bool) -> Traced:
        exporter = InMemorySpanExporter()
        telemetry.setup(Settings(**settings), exporter=exporter)

        def end() -> dict[str, ReadableSpan]:
            telemetry.shutdown()
            return {span.name: span for span in exporter.get_finished_spans()}

        return end

    return begin
