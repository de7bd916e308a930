"""Events of a run as spans: run, node, retrieval and model call, under OpenTelemetry's names.

Names are those of the GenAI semantic conventions where these have one, `ragwright.*` elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)

from workflows.events import (
    Asked,
    Event,
    ModelCalled,
    Retrieved,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
)

Operation = gen_ai.GenAiOperationNameValues

PROVIDERS = {"native": "ragwright"}
"""Engines whose provider has another name than the engine."""

SAMPLING = {
    "max_tokens": gen_ai.GEN_AI_REQUEST_MAX_TOKENS,
    "temperature": gen_ai.GEN_AI_REQUEST_TEMPERATURE,
    "top_p": gen_ai.GEN_AI_REQUEST_TOP_P,
    "top_k": gen_ai.GEN_AI_REQUEST_TOP_K,
    "seed": gen_ai.GEN_AI_REQUEST_SEED,
    "stop": gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES,
}
"""Sampling parameter -> attribute."""

STOPPED = frozenset({"cancelled", "budget_exhausted", "interrupted"})
"""Codes of ends that are no errors: somebody wanted them."""


class SpanSink:
    """A sink for one attempt at a run; its spans end when the events say so.

    A node of a sub-workflow is a child of the node that called it. With `content`, spans hold
    inputs, outputs, notes and error messages too.
    """

    def __init__(self, tracer: Tracer, parent: Context | None, *, content: bool) -> None:
        self._tracer = tracer
        self._parent = parent
        self._content = content
        self._run: Span | None = None
        self._steps: dict[str, Span] = {}

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        match event:
            case RunStarted():
                self._run = self._begin_run(event)
            case StepStarted():
                self._steps[event.task] = self._begin_step(event)
            case ModelCalled():
                self._model_call(event)
            case Retrieved():
                self._retrieval(event)
            case Asked() if self._run is not None:
                self._run.add_event("ragwright.asked", {"ragwright.asks": len(event.asks)})
            case StepFinished():
                self._end_step(event)
            case RunFinished():
                self._end_run(event.result)

    def close(self) -> None:
        """End what is open, for an attempt that broke off without a last event."""
        for span in (*reversed(self._steps.values()), *filter(None, [self._run])):
            span.end()
        self._steps.clear()
        self._run = None

    def _begin_run(self, event: RunStarted) -> Span:
        facts = {
            gen_ai.GEN_AI_OPERATION_NAME: Operation.INVOKE_WORKFLOW.value,
            gen_ai.GEN_AI_WORKFLOW_NAME: event.workflow,
            "ragwright.run.id": event.run_id,
            "ragwright.run.seed": event.seed,
            "ragwright.run.resumed": event.resumed,
        }
        if self._content:
            facts["ragwright.run.inputs"] = event.inputs
        name = f"{Operation.INVOKE_WORKFLOW.value} {event.workflow}"
        return self._tracer.start_span(name, self._parent, attributes=_attributes(facts))

    def _begin_step(self, event: StepStarted) -> Span:
        facts = {
            "ragwright.node.name": event.node,
            "ragwright.node.kind": event.kind,
            "ragwright.node.task": event.task,
        }
        caller = self._steps.get(event.task.rpartition("/")[0])
        return self._tracer.start_span(
            f"node {event.node}",
            self._under(caller),
            attributes=_attributes(facts),
            start_time=_nanoseconds(event.started_at) if event.started_at else None,
        )

    def _model_call(self, event: ModelCalled) -> None:
        operation, used = event.operation, event.usage
        facts: dict[str, Any] = {
            gen_ai.GEN_AI_OPERATION_NAME: operation,
            gen_ai.GEN_AI_PROVIDER_NAME: PROVIDERS.get(event.engine, event.engine),
            gen_ai.GEN_AI_REQUEST_MODEL: event.model,
            gen_ai.GEN_AI_RESPONSE_MODEL: event.model,
            gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: [event.finish_reason],
            gen_ai.GEN_AI_USAGE_INPUT_TOKENS: used.prompt_tokens,
            gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: used.completion_tokens,
            gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: used.cached_tokens,
            "ragwright.node.name": event.node,
            "ragwright.call": event.call,
        }
        for name, attribute in SAMPLING.items():
            facts[attribute] = event.sampling.get(name)
        for name, value in event.stats.items():
            if isinstance(value, int | float):
                facts[f"ragwright.stats.{name}"] = value
        local = event.engine == "native"
        self._past_span(
            f"{operation} {event.model}",
            event,
            facts,
            SpanKind.INTERNAL if local else SpanKind.CLIENT,
        )

    def _retrieval(self, event: Retrieved) -> None:
        facts = {
            gen_ai.GEN_AI_OPERATION_NAME: Operation.RETRIEVAL.value,
            gen_ai.GEN_AI_DATA_SOURCE_ID: event.retriever,
            "ragwright.retrieval.queries": event.queries,
            "ragwright.retrieval.k": event.k,
            "ragwright.retrieval.hits": event.hits,
            "ragwright.node.name": event.node,
        }
        name = f"{Operation.RETRIEVAL.value} {event.retriever}"
        self._past_span(name, event, facts, SpanKind.INTERNAL)

    def _past_span(
        self, name: str, event: ModelCalled | Retrieved, facts: dict[str, Any], kind: SpanKind
    ) -> None:
        """A span of something that is over when it is told."""
        span = self._tracer.start_span(
            name,
            self._under(self._steps.get(event.task)),
            kind=kind,
            attributes=_attributes(facts),
            start_time=_nanoseconds(event.started_at),
        )
        if isinstance(event, ModelCalled) and event.finish_reason == "failed":
            self._fail(span, {"code": "failed", "message": "the engine could not go on"})
        span.end(_nanoseconds(event.started_at + event.seconds))

    def _end_step(self, event: StepFinished) -> None:
        span = self._steps.pop(event.task, None)
        if span is None:
            return
        if self._content and event.notes:
            span.set_attributes(_attributes({"ragwright.node.notes": event.notes}))
        if event.error is not None:
            self._fail(span, event.error)
        span.end()

    def _end_run(self, result: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        facts = {"ragwright.run.status": result["status"]}
        facts |= {f"ragwright.usage.{name}": value for name, value in result["usage"].items()}
        if self._content:
            facts["ragwright.run.outputs"] = result["outputs"]
        self._run.set_attributes(_attributes(facts))
        if result["error"] is not None:
            self._fail(self._run, result["error"])
        self._run.end()
        self._run = None

    def _fail(self, span: Span, error: Mapping[str, str]) -> None:
        """Why something ended; a message may quote what the run is about, a code never does."""
        span.set_attribute(ERROR_TYPE, error["code"])
        if error["code"] not in STOPPED:
            message = f"{error['code']}: {error['message']}" if self._content else error["code"]
            span.set_status(Status(StatusCode.ERROR, _text(message)))

    def _under(self, span: Span | None) -> Context | None:
        above = span or self._run
        return self._parent if above is None else set_span_in_context(above, self._parent)


def _attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as the wire format can hold them; what is None is left out."""
    return {name: _value(value) for name, value in facts.items() if value is not None}


def _value(value: Any) -> Any:
    """A value that can be encoded: one that cannot would lose its whole batch of spans."""
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return [_text(one) for one in value]
    return _text(json.dumps(value, ensure_ascii=False, default=str))


def _text(text: str) -> str:
    """Text without the halves of characters that UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
