"""Traces of runs through OpenTelemetry: off by default, and then none of it is imported.

`setup` once per process, `sink()` once per run. Exporters are configured by the standard OTEL_
variables; what runs are about (questions, prompts, texts) is left out unless `log_content` is set.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workflows.errors import WorkflowInputError
from workflows.events import Event, Sink

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from api.settings import Settings
    from api.telemetry.pipeline import Pipeline

SHUTDOWN_SECONDS = 2.0
"""How long the end of a process waits for a collector to take what is left."""

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)

_pipeline: Pipeline | None = None


def setup(settings: Settings | None = None, *, exporter: SpanExporter | None = None) -> None:
    """Begin to trace as the settings say; without settings, as the variables RAGWRIGHT_... say.

    `exporter` takes the place of the one that `telemetry` names. Called again, it starts anew.
    Raises WorkflowInputError for a setting that cannot be used.
    """
    global _pipeline
    shutdown()
    if settings is None:
        if os.environ.get("RAGWRIGHT_TELEMETRY", "off") == "off" and exporter is None:
            return
        settings = _settings()
    if settings.telemetry == "off" and exporter is None:
        return
    try:
        from api.telemetry.pipeline import Pipeline
    except ImportError as error:
        raise WorkflowInputError(
            f"telemetry {settings.telemetry!r} needs the extra 'service' ({error.name} is not "
            "installed); install it or set RAGWRIGHT_TELEMETRY=off"
        ) from None
    _pipeline = Pipeline(settings, exporter)
    atexit.register(shutdown)


def sink(parent: Mapping[str, str] | None = None) -> Sink:
    """A sink for one attempt at a run, which turns its events into spans; silent when off.

    `parent` is what `carrier` or `inject` gave where the run was asked for; without it, the run
    belongs to the span that is current where it starts.
    """
    return _silent if _pipeline is None else _pipeline.sink(parent)


@contextmanager
def traced(parent: Mapping[str, str] | None = None) -> Iterator[Sink]:
    """A sink as `sink` gives it, whose spans end with the block, however the attempt ends."""
    hears = sink(parent)
    try:
        yield hears
    finally:
        if hears is not _silent:
            from api.telemetry.spans import SpanSink

            assert isinstance(hears, SpanSink), "a pipeline makes no other"
            hears.close()


def carrier(headers: Mapping[str, str]) -> dict[str, str]:
    """The W3C trace context among the headers of a request, as plain strings to hand on.

    Empty where there is none or it is malformed. Header names are lower case.
    """
    traceparent = headers.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(traceparent):
        return {}
    state = headers.get("tracestate", "")
    fine = 0 < len(state) <= 512 and state.isascii() and state.isprintable()
    return {"traceparent": traceparent, **({"tracestate": state} if fine else {})}


def inject() -> dict[str, str]:
    """The W3C trace context of the current span, to hand on; empty when off."""
    return {} if _pipeline is None else _pipeline.inject()


def shutdown(seconds: float = SHUTDOWN_SECONDS) -> None:
    """Export what is left, for at most so long, and stop tracing; harmless when off."""
    global _pipeline
    pipeline, _pipeline = _pipeline, None
    if pipeline is not None:
        atexit.unregister(shutdown)
        pipeline.shutdown(seconds)


def _silent(event: Event) -> None:
    """The sink of a process that traces nothing."""


def _settings() -> Any:
    from pydantic import ValidationError

    from api.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "RAGWRIGHT_" + "_".join(str(part) for part in first["loc"]).upper()
        raise WorkflowInputError(f"{name}={first.get('input')!r}: {first['msg']}") from None
