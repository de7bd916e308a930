"""A workflow as a chat model: its last question in, its answer out.

A node's text is not the answer before the workflow says so (Auto-RAG thinks aloud), so that it is
never sent as the answer's. A stream tells the steps, and what generating nodes write, under the
key `ragwright` of chunks whose delta is empty, and the answer in one piece when it stands.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from pydantic import ValidationError

from api import telemetry
from api.errors import BAD_INPUT
from api.http.errors import ApiError
from api.http.openai import replies
from api.http.openai.models import ChatBody
from api.http.openai.refusals import refused
from api.http.openai.replies import Envelope
from api.http.openai.served import WORKFLOW, Ask
from api.http.openai.translate import messages
from api.http.openai.work import in_thread
from api.http.routes.bodies import RunRequest
from api.http.routes.runs import manifest_of
from workflows.checkpoints import strict_serializer
from workflows.errors import WorkflowInputError
from workflows.events import Event, Sink, StepFinished, StepStarted, TextDelta
from workflows.keeping import Keeping
from workflows.runs import perform, workflow_of
from workflows.runtime import RunResult, RunStatus
from workflows.scope import budget_of
from workflows.store import RunManifest

KIND = "chat.completion"
QUESTION = "question"
"""The input that the last message of the user is."""
OWN = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
)
"""Parameters that a workflow decides itself, unless it declares an input of the name."""
ENGINES = (
    "logprobs",
    "top_logprobs",
    "response_format",
    "structured_outputs",
    "cache_salt",
    "return_token_ids",
)


class _Forgetful:
    """A journal of a run that nobody can resume."""

    def __call__(self, event: Event) -> None:
        """Take an event in."""

    async def flush(self) -> None:
        """Nothing is kept."""


def _ignore(event: Event) -> None:
    """Nobody listens."""


@asynccontextmanager
async def _in_memory() -> AsyncIterator[InMemorySaver]:
    yield InMemorySaver(serde=strict_serializer())


@dataclass(frozen=True)
class Question:
    """A checked run, and how many messages of the dialogue it does not see."""

    manifest: RunManifest
    unread: int


async def answer(body: ChatBody, ask: Ask, envelope: Envelope) -> dict[str, Any]:
    """The run's answer as a completion; the rest of its result under `ragwright`."""
    async with ask.enter():
        question = await in_thread(lambda: _question(body, ask))
        result = await _run(question, ask, _ignore)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": _text(result), "refusal": None},
        "logprobs": None,
        "finish_reason": _finish(result),
    }
    own = _own(result, question)
    return envelope.of(KIND, [choice], usage=_usage(result), ragwright=own)


async def chunks(
    body: ChatBody, ask: Ask, envelope: Envelope
) -> AsyncGenerator[dict[str, Any], None]:
    """The run's progress, then its answer, then what else it found, then the usage."""

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return envelope.of(f"{KIND}.chunk", [choice], **more)

    async with ask.enter():
        question = await in_thread(lambda: _question(body, ask))
        told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def tell(event: Event) -> None:
            if (progress := _progress(event)) is not None:
                told.put_nowait(progress)

        running = asyncio.ensure_future(_run(question, ask, tell))
        running.add_done_callback(lambda _: told.put_nowait(None))
        try:
            yield chunk({"role": "assistant", "content": ""})
            while (progress := await told.get()) is not None:
                yield chunk({}, ragwright={"progress": progress})
            result = running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    yield chunk({"content": _text(result)})
    yield chunk({}, _finish(result), ragwright=_own(result, question))
    if body.stream_options is not None and body.stream_options.include_usage:
        yield envelope.of(f"{KIND}.chunk", [], usage=_usage(result))


def _question(body: ChatBody, ask: Ask) -> Question:
    """The run that a body asks for; reads files. Raises ApiError and WorkflowInputError."""
    if (body.n or 1) > 1:
        raise refused("n", "a workflow gives one answer; ask again with another seed")
    for name in ENGINES:
        if getattr(body, name):
            raise refused(name, "is for the engine alone; leave it out with a workflow")
    extras = body.ragwright
    for name in ("adapters", "kv", "drafter", "references"):
        if getattr(extras, name):
            raise refused(f"ragwright.{name}", "its nodes say that; leave it out with a workflow")
    if body.seed is not None and extras.seed is not None:
        raise refused("seed", "ragwright.seed says the same; give one of them")
    dialogue = messages(body.messages)
    asked = [one.content for one in dialogue if one.role == "user"]
    if not asked:
        raise refused("messages", "no message of the user; ask something", "invalid_request")
    seed = extras.seed if extras.seed is not None else (body.seed or 0) % 2**63
    given = {name: value for name in OWN if (value := getattr(body, name)) is not None}
    name = body.model.removeprefix(WORKFLOW)
    try:
        order = RunRequest(
            workflow=name,
            inputs={QUESTION: asked[-1], **extras.inputs, **given},
            index=extras.index,
            graph=extras.graph,
            seed=seed,
        )
    except ValidationError:
        raise _unknown(body.model) from None
    manifest = _timed(_manifest(order, ask, body.model, given), ask)
    unread = 0 if asked[-1] != manifest.inputs.get(QUESTION) else len(dialogue) - 1
    return Question(manifest, unread)


def _manifest(order: RunRequest, ask: Ask, model: str, given: dict[str, Any]) -> RunManifest:
    try:
        return manifest_of(ask.service, ask.caller, order)
    except WorkflowInputError as error:
        for name in given:
            if f"unknown input {name!r}" in str(error):
                message = f"{model} has no input of this name; leave it out, its file decides it"
                raise refused(name, message) from None
        raise


def _unknown(model: str) -> ApiError:
    message = f"no model {model!r} here; GET /v1/models lists all"
    return ApiError(404, "model_not_found", message, param="model")


async def _run(question: Question, ask: Ask, tell: Sink) -> RunResult:
    """The run to its end, or to the deadline; nothing of it is kept."""
    with telemetry.traced(ask.trace) as spans:
        result = await perform(
            question.manifest,
            ask.service.pool,
            Keeping(_Forgetful(), _in_memory),
            sinks=(tell, spans),
            stream_text=tell is not _ignore,
        )
    if result.status is RunStatus.CANCELLED:
        raise asyncio.CancelledError
    if result.status is RunStatus.FAILED:
        error = result.error or {}
        code = str(error.get("code", "failed"))
        raise ApiError(400 if code in _BLAMELESS else 500, code, str(error.get("message")))
    return result


def _timed(manifest: RunManifest, ask: Ask) -> RunManifest:
    """The manifest with a budget of seconds that ends with the deadline."""
    own = budget_of(workflow_of(manifest), manifest.inputs).seconds
    left = max(ask.deadline - time.monotonic(), 1e-3)
    return replace(manifest, budget={"seconds": left if own is None else min(own, left)})


def _codes(kinds: Iterable[type[Exception]]) -> Iterator[str]:
    for kind in kinds:
        yield from [str(getattr(kind, "code", "bad_input")), *_codes(kind.__subclasses__())]


_BLAMELESS = frozenset(_codes(BAD_INPUT))
"""Codes of errors that the caller can mend."""


def _text(result: RunResult) -> str:
    """The answer: the output of that name, or the only one, or all of them as JSON."""
    outputs = result.outputs
    found = outputs.get("answer", next(iter(outputs.values())) if len(outputs) == 1 else outputs)
    if found is None:
        return ""
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _finish(result: RunResult) -> str:
    """`length` where the budget or the deadline cut the run."""
    return "stop" if result.status is RunStatus.COMPLETED else "length"


def _own(result: RunResult, question: Question) -> dict[str, Any]:
    """What a run tells that the protocol has no place for."""
    return {
        **result.to_dict(),
        "citations": result.outputs.get("citations", []),
        "unread_messages": question.unread,
    }


def _usage(result: RunResult) -> dict[str, Any]:
    spent = result.usage
    prompt, cached = int(spent["prompt_tokens"]), int(spent["cached_tokens"])
    return replies.tokens_used(prompt, int(spent["completion_tokens"]), cached)


def _progress(event: Event) -> dict[str, Any] | None:
    """What a stream tells of an event; the rest stands in the result."""
    if isinstance(event, StepStarted):
        return {"type": event.type, "node": event.node, "kind": event.kind}
    if isinstance(event, StepFinished):
        return {"type": event.type, "node": event.node, "seconds": event.seconds}
    if isinstance(event, TextDelta):
        return {"type": event.type, "node": event.node, "text": event.text}
    return None
