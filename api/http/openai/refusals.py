"""What is refused by name: parameters that would change the answer and cannot be honoured."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from api.errors import BAD_INPUT
from api.http.errors import ApiError, known
from api.http.openai.models import CompletionBody, Generation
from api.http.routing import JsonRoute

NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "suffix": ("",),
    "service_tier": ("auto", "default"),
    "refusal": (),
    "annotations": ([],),
    "name": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "image_url": (),
    "input_audio": (),
    "file": (),
}
"""Parameter -> what it may hold besides null, because that asks for nothing."""

REMEDY = {
    "tools": "describe the tools in a message, or use a workflow",
    "functions": "describe the functions in a message, or use a workflow",
    "frequency_penalty": "use repetition_penalty (extra_body)",
    "presence_penalty": "use repetition_penalty (extra_body)",
    "logit_bias": "use structured_outputs (extra_body) to rule words out",
    "best_of": "use n",
    "name": "say in the content who speaks",
}


def refused(param: str, message: str, code: str = "unsupported_parameter") -> ApiError:
    """The refusal of a parameter, 400 as OpenAI's clients expect."""
    return ApiError(400, code, f"{param}: {message}", param=param)


def require_nothing(body: BaseModel, place: str = "") -> None:
    """Raise ApiError for a field that asks for what is not there."""
    for name in type(body).model_fields:
        value = getattr(body, name)
        if name not in NOTHING or value is None:
            continue
        if not any(type(value) is type(one) and value == one for one in _spelt(NOTHING[name])):
            remedy = REMEDY.get(name, "leave it out")
            raise refused(place + name, f"not supported by this server; {remedy}")


def _spelt(values: tuple[Any, ...]) -> list[Any]:
    """Zero may come as 0 or 0.0."""
    return [*values, *(0.0 for one in values if one == 0 and type(one) is int)]


def require_supported(body: Generation) -> None:
    """Raise ApiError for what chat or completions were asked and cannot do."""
    require_nothing(body)
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "only with stream=true; leave it out")
    if body.cache_salt == "":
        raise refused("cache_salt", "must not be empty; leave it out", "invalid_request")
    if isinstance(body, CompletionBody):
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise refused("best_of", "not supported by this server; use n")
        if body.prompt_logprobs is not None and body.stream:
            raise refused("prompt_logprobs", "not in a stream; leave out one of them")


def in_protocol(error: Exception) -> Exception:
    """An error as this protocol tells it: bad input is 400, and `param` has no `body.`."""
    if isinstance(error, RequestValidationError):
        answer = known(error)
        assert answer is not None
        param = (answer.param or "").removeprefix("body.")
        message = answer.message.removeprefix("body.")
        return ApiError(400, answer.code, message, param=param or None)
    if isinstance(error, BAD_INPUT):
        answer = known(error)
        assert answer is not None
        if answer.status_code == 422:
            return ApiError(400, answer.code, answer.message, param=answer.param)
        return answer
    return error


class ProtocolRoute(JsonRoute):
    """A route whose refusals are those of OpenAI's protocol."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, its errors told again."""
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                answer = in_protocol(error)
                if answer is error:
                    raise
                raise answer from error

        return told
