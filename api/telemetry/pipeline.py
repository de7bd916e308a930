"""From spans to an exporter, on a thread of its own that no run waits for."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import threading
from collections.abc import Mapping

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api.settings import Settings
from api.telemetry.spans import SpanSink

_W3C = TraceContextTextMapPropagator()


class Pipeline:
    """A tracer provider of this project's own; the process's global one is left alone.

    Spans wait in a bounded queue for the exporter's thread. Where it cannot keep up, or nobody
    listens, spans are dropped and the log says so; runs go on as if nothing were the matter.
    """

    def __init__(self, settings: Settings, exporter: SpanExporter | None = None) -> None:
        self._content = settings.log_content
        self._exporter = exporter or _exporter(settings.telemetry)
        # Not at exit: the SDK would wait half a minute there for a collector that is gone.
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("ragwright", _version())

    def sink(self, parent: Mapping[str, str] | None) -> SpanSink:
        """A sink for one attempt at a run."""
        context = _W3C.extract(parent) if parent else None
        return SpanSink(self._tracer, context, content=self._content)

    @staticmethod
    def inject() -> dict[str, str]:
        """The current span as headers."""
        headers: dict[str, str] = {}
        _W3C.inject(headers)
        return headers

    def flush(self) -> None:
        """Return when everything that ended is exported, or failed to be."""
        self._provider.force_flush()

    def shutdown(self, seconds: float) -> None:
        """Export what is left; after so many seconds the exporter is told to give up."""
        ending = threading.Thread(target=self._provider.shutdown, name="telemetry", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            self._exporter.shutdown()
            ending.join(seconds)


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter(out=sys.stderr)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _resource() -> Resource:
    """Service name and version, unless the OTEL_ variables name the service otherwise."""
    facts = {SERVICE_VERSION: _version()}
    named = os.environ.get("OTEL_SERVICE_NAME", "")
    if not named and f"{SERVICE_NAME}=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        facts[SERVICE_NAME] = "ragwright"
    return Resource.create(facts)


def _version() -> str:
    try:
        return importlib.metadata.version("ragwright")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
