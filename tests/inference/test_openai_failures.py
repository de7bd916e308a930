"""What the `openai` engine does when its server fails.

Only error paths are exercised here; what works is tested on real servers in tests/conformance and
tests/integration.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from threading import Thread

import pytest
from pydantic import ValidationError

from inference import (
    InferenceError,
    InferenceInputError,
    Message,
    Request,
    SamplingParams,
)
from inference.engine import OpenAIConfig
from inference.errors import (
    AccessDenied,
    PromptTooLong,
    ServerTimeout,
    ServerUnavailable,
    UnknownName,
    Unsupported,
)
from inference.grammar import Grammar
from inference.guidance import Context, ContextAware
from inference.kv import StreamingLLM
from inference.openai.engine import OpenAIEngine
from inference.openai.server import address
from inference.taps import Taps
from tests.inference.misbehaving import KEY, PIECE, Handler, Naughty, fails, finish

REQUEST = Request(prompt="x")


def test_too_many_requests_is_tried_again_when_the_server_says(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.answers = [fails(429, Retry_After="1"), finish]
    (output,) = opened().generate([REQUEST])
    assert output.text == "half"
    assert server.times[1] - server.times[0] >= 1.0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_keeps_failing_is_given_up(
    status: int, server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.answers = [fails(status)] * 2
    with pytest.raises(ServerUnavailable, match=rf"{status}.*tries: 2.*out of order"):
        opened(retries=1).generate([REQUEST])
    assert server.answers == []


def test_a_silent_server_is_a_timeout(server: Naughty, opened: Callable[..., OpenAIEngine]) -> None:
    server.answers = [lambda handler: time.sleep(1)]
    with pytest.raises(ServerTimeout, match=r"silent for 0\.3 s"):
        opened(retries=0, timeout=0.3).generate([REQUEST])


def test_a_deadline_does_not_wait_for_a_retry(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    engine, request = opened(), Request(prompt="x", seconds=0.3)
    server.answers = [fails(429, Retry_After="60")]
    begun = time.monotonic()
    (output,) = engine.generate([request])
    assert output.finish_reason.value == "deadline"
    assert time.monotonic() - begun < 5


def test_a_dropped_connection_says_how_far_it_came(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.answers = [lambda handler: handler.pieces(PIECE)]
    seen: list[str] = []

    async def read() -> None:
        async for chunk in opened().stream(REQUEST):
            seen.append(chunk.text)

    with pytest.raises(ServerUnavailable, match="after 4 characters"):
        asyncio.run(read())
    assert seen == ["half"]


def test_a_broken_chunk_is_an_error_of_the_server(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'data: {"choices": [{"index": 0, "text": "x"')

    server.answers = [cut]
    with pytest.raises(ServerUnavailable, match="broke off the connection"):
        opened().generate([REQUEST])


def test_an_error_inside_a_stream_is_told(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.answers = [lambda handler: handler.pieces(PIECE, {"error": {"message": "cache full"}})]
    with pytest.raises(ServerUnavailable, match="cache full"):
        opened().generate([REQUEST])


@pytest.mark.parametrize(("code", "kind"), [(400, InferenceInputError), (500, ServerUnavailable)])
def test_an_error_inside_a_stream_says_who_is_to_blame(
    code: int, kind: type[Exception], server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    error = {"error": {"message": "no such schema", "code": code}}
    server.answers = [lambda handler: handler.pieces(error)]
    with pytest.raises(InferenceError, match="no such schema") as caught:
        opened().generate([REQUEST])
    assert isinstance(caught.value, kind)


def test_a_context_overflow_is_a_prompt_too_long(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.answers = [fails(400, "This model's maximum context length is 64 tokens")]
    with pytest.raises(PromptTooLong, match="64 tokens"):
        opened().generate([REQUEST])


def test_a_refused_key_is_named_by_its_variable_and_never_shown(
    server: Naughty, opened: Callable[..., OpenAIEngine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.listing = fails(401, f"bad key {KEY}")
    with pytest.raises(AccessDenied, match="RAGWRIGHT_OPENAI_API_KEY") as caught:
        opened()
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in str(caught.value) + repr(caught.value) + caplog.text


def test_no_key_means_no_header(
    server: Naughty, opened: Callable[..., OpenAIEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAGWRIGHT_OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "meant for another host")
    opened()
    assert server.keys == [None]


def test_a_redirect_is_reported_and_not_followed(
    server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    with Naughty() as other:
        server.listing = fails(307, Location=f"{other.url}/models")
        with pytest.raises(InferenceInputError, match="redirects are not followed"):
            opened()
        assert other.keys == []


def test_an_unknown_model_lists_the_models(opened: Callable[..., OpenAIEngine]) -> None:
    with pytest.raises(UnknownName, match=r"offers: large, small; did you mean 'large'\?"):
        opened(model="larg")
    with pytest.raises(InferenceInputError, match="say which"):
        opened(model=None)


def test_the_context_must_be_known_and_true(opened: Callable[..., OpenAIEngine]) -> None:
    assert opened(model="large", context_length=None).context_length == 64
    with pytest.raises(InferenceInputError, match="give context_length"):
        opened(context_length=None)
    with pytest.raises(InferenceInputError, match="65 is more than the 64"):
        opened(model="large", context_length=65)


@pytest.mark.parametrize("listing", [{}, [], {"data": [1]}, "text"])
def test_something_else_than_the_protocol(
    listing: object, server: Naughty, opened: Callable[..., OpenAIEngine]
) -> None:
    server.listing = lambda handler: handler.reply(200, listing)
    with pytest.raises(ServerUnavailable, match="/v1"):
        opened()


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ServerUnavailable, match="cannot be reached"):
        OpenAIEngine.from_config(OpenAIConfig(base_url="http://127.0.0.1:9/v1", retries=0))


def test_what_the_server_cannot_do_is_refused_by_name(opened: Callable[..., OpenAIEngine]) -> None:
    engine = opened()
    for options in ({"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.2}):
        sampling = SamplingParams(**options)  # type: ignore[arg-type]
        with pytest.raises(Unsupported, match=next(iter(options))):
            engine.generate([Request(prompt="x", sampling=sampling)])
    with pytest.raises(Unsupported, match="tokenizer"):
        engine.count_tokens(REQUEST)
    with pytest.raises(Unsupported, match="tokenizer"):
        engine.generate([Request(prompt="x", truncate="left")])
    with pytest.raises(Unsupported, match=r"grammar \(regex\).*/completions.*: none"):
        engine.generate([Request(prompt="x", grammar=Grammar.regex("[a-z]+"))])
    with pytest.raises(Unsupported, match=r"logprobs=3.*/chat/completions"):
        engine.generate([Request(messages=[Message("user", "x")], logprobs=3)])
    with pytest.raises(Unsupported, match="tenant 'me'"):
        engine.generate([Request(prompt="x", tenant="me")])
    for field, value in (
        ("adapters", ("law",)),
        ("kv", StreamingLLM()),
        ("guidance", ContextAware(Context(prompt="y"))),
        ("taps", Taps(print)),
        ("skip_layers", (0, 1)),
        ("resumed", (1, 2)),
    ):
        with pytest.raises(Unsupported, match=f"gives {field}, and server"):
            engine.generate([Request(prompt="x", **{field: value})])
    with pytest.raises(Unsupported, match="score"):
        engine.score(REQUEST, ["y"])
    with pytest.raises(Unsupported, match="api: chat"):
        opened(api="chat").generate([REQUEST])
    with pytest.raises(InferenceInputError, match="takes none"):
        opened(api="completions").generate([Request(messages=[Message("user", "x")])])
    with pytest.raises(InferenceInputError, match="already in use"):
        engine.generate([REQUEST, REQUEST])


def test_closing_ends_what_runs(server: Naughty, opened: Callable[..., OpenAIEngine]) -> None:
    engine = opened()
    server.answers = [lambda handler: (handler.pieces(PIECE), time.sleep(2))[0]]
    closer = Thread(target=lambda: (time.sleep(0.3), engine.close()))
    closer.start()
    with pytest.raises(InferenceError, match="closed"):
        engine.generate([REQUEST])
    closer.join()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "RAGWRIGHT_OPENAI_BASE_URL"),
        ("ftp://127.0.0.1/v1", r"http\(s\)"),
        ("http://127.0.0.1/v1?x=1", r"http\(s\)"),
        ("http://[::1/v1", r"http\(s\)"),
        ("http://127.0.0.1:port/v1", r"http\(s\)"),
        ("127.0.0.1:8000", r"http\(s\)"),
        ("https://me:secret@example.org/v1", "user name or password"),
        ("http://example.org/v1", "clear text"),
        ("https://example.com/v1", "RAGWRIGHT_OPENAI_HOSTS"),
        ("https://example.org.evil.com/v1", "RAGWRIGHT_OPENAI_HOSTS"),
    ],
)
def test_bad_addresses_are_refused_before_anything_is_sent(
    url: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGWRIGHT_OPENAI_API_KEY", KEY)
    monkeypatch.delenv("RAGWRIGHT_OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("RAGWRIGHT_OPENAI_HOSTS", "other.org, example.org")
    with pytest.raises(InferenceInputError, match=message) as caught:
        OpenAIEngine.from_config(OpenAIConfig(base_url=url))
    assert KEY not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "line\n", "schlüssel"])
def test_a_key_that_no_header_carries_is_not_shown(
    key: str, server: Naughty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGWRIGHT_MY_KEY", key)
    with pytest.raises(AccessDenied, match="RAGWRIGHT_MY_KEY") as caught:
        OpenAIEngine.from_config(OpenAIConfig(base_url=server.url, api_key_env="RAGWRIGHT_MY_KEY"))
    assert key.strip() not in str(caught.value)


def test_a_named_variable_must_hold_a_key(server: Naughty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAGWRIGHT_MY_KEY", raising=False)
    with pytest.raises(AccessDenied, match="RAGWRIGHT_MY_KEY is empty"):
        OpenAIEngine.from_config(OpenAIConfig(base_url=server.url, api_key_env="RAGWRIGHT_MY_KEY"))


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "ragwright_key"])
def test_a_workflow_cannot_send_other_variables_anywhere(name: str) -> None:
    with pytest.raises(ValidationError, match="api_key_env"):
        OpenAIConfig(api_key_env=name)


def test_a_host_that_the_environment_names_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGWRIGHT_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("RAGWRIGHT_OPENAI_BASE_URL", "https://example.org/v1")
    assert address(OpenAIConfig()).url == "https://example.org/v1"
    named = address(OpenAIConfig(base_url="https://example.org/other/v1/"))
    assert (named.url, named.key) == ("https://example.org/other/v1", KEY)
    assert KEY not in repr(named)
