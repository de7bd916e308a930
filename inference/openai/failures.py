"""What went wrong between this project and a server, as errors of this project."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx2
import openai

from inference.errors import (
    AccessDenied,
    InferenceError,
    InferenceInputError,
    PromptTooLong,
    ServerTimeout,
    ServerUnavailable,
    UnknownName,
)

if TYPE_CHECKING:
    from inference.openai.connection import Address

_TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum.{0,20}(context|length)|too long|max_model_len", re.I
)


def translate(error: Exception, address: Address) -> InferenceError:
    """The error of this package that says what a client's error means and what to do."""
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, address)
    said = address.redact(_line(error))
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
        return ServerTimeout(
            f"server {address.url} was silent for {address.timeout:g} s (option timeout; tries: "
            f"{address.retries + 1}); raise timeout or look at the server"
        )
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    if isinstance(cause, httpx2.RemoteProtocolError | httpx2.ReadError):
        return ServerUnavailable(
            f"server {address.url} broke off the connection ({address.redact(_line(cause))}); send "
            "the request again"
        )
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
        return ServerUnavailable(
            f"server {address.url} cannot be reached ({address.redact(_line(cause or error))}; "
            f"tries: {address.retries + 1}); start it, or correct base_url"
        )
    if isinstance(error, openai.APIError) and _blames_request(error.body):
        return InferenceInputError(f"server {address.url} refuses the request: {said}")
    if isinstance(error, openai.APIError):
        return ServerUnavailable(f"server {address.url} failed in mid-answer: {said}")
    return ServerUnavailable(
        f"server {address.url} answers with something else than the OpenAI protocol ({said}); "
        "correct base_url, which mostly ends in /v1"
    )


def _blames_request(body: object) -> bool:
    """True for an error inside a stream that a status of its own would have told as 4xx."""
    code = body.get("code") if isinstance(body, dict) else None
    return isinstance(code, int) and code in (400, 404, 413, 422)


def _of_status(error: openai.APIStatusError, address: Address) -> InferenceError:
    status = error.status_code
    said = address.redact(_line(error))
    place = f"server {address.url}"
    if status in (401, 403):
        key = f"the key of {address.key_source}" if address.key else "a request without a key"
        remedy = "set another" if address.key else f"set {address.key_source}"
        return AccessDenied(f"{place} refuses {key} (status {status}); {remedy}")
    if 300 <= status < 400:
        target = address.redact(error.response.headers.get("location", "an unnamed place"))
        return InferenceInputError(
            f"{place} redirects to {target}, and redirects are not followed; give the address that "
            "answers as base_url"
        )
    if status == 404:
        return UnknownName(
            f"{place} has no such model or endpoint: {said}; correct model, or base_url, which "
            "mostly ends in /v1"
        )
    if status == 429 or status >= 500:
        failure = ServerUnavailable(
            f"{place} answers with status {status} (tries: {address.retries + 1}): {said}; "
            "try again later or raise retries"
        )
        failure.status = status
        return failure
    if error.code in ("context_length_exceeded", PromptTooLong.code) or _TOO_LONG.search(said):
        return PromptTooLong(f"{place} refuses the length: {said}; shorten the prompt")
    return InferenceInputError(f"{place} refuses the request (status {status}): {said}")


def _line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = error.message if isinstance(error, openai.APIError) else str(error)
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        text = body["message"]
    return " ".join((text or type(error).__name__).split())[:300]
