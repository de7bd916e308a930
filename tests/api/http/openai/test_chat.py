"""Chat completions as OpenAI's own client sees them, against the engine called directly."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest

from inference import Grammar, Message, Request, SamplingParams
from inference.kv import parse as parse_kv
from inference.native.engine import NativeEngine
from tests.api.http.openai.conftest import asynchronous
from tests.api.http.site import Site

TURNS: list[Any] = [{"role": "user", "content": "the fox"}]
MESSAGES = [Message("user", "the fox")]


def _direct(engine: NativeEngine, **options: Any) -> Any:
    sampling = SamplingParams(**{"max_tokens": 8, **options.pop("sampling", {})})
    request = Request(messages=options.pop("messages", MESSAGES), sampling=sampling, **options)
    return engine.generate([request])[0]


def test_an_answer_is_the_engines(client: openai.OpenAI, engine: NativeEngine) -> None:
    answer = client.chat.completions.create(
        model="default", messages=TURNS, max_tokens=8, temperature=0
    )
    direct = _direct(engine)
    assert answer.object == "chat.completion"
    assert answer.model == "default"
    assert answer.choices[0].message.content == direct.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == direct.usage.prompt_tokens
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == 8 + direct.usage.prompt_tokens
    assert abs(answer.created - time.time()) < 60


def test_a_stream_says_the_same_token_by_token(client: openai.OpenAI, engine: NativeEngine) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=TURNS,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == _direct(engine).text
    assert sum(1 for text in texts if text) > 3, "it came in pieces"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-2].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_both_ways_from_an_event_loop(served: Site, engine: NativeEngine) -> None:
    async def ask() -> tuple[str, str]:
        async with asynchronous(served) as client:
            options: dict[str, Any] = {"model": "default", "messages": TURNS, "max_tokens": 8}
            answer = await client.chat.completions.create(**options, temperature=0)
            stream = await client.chat.completions.create(**options, temperature=0, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return str(answer.choices[0].message.content), "".join(pieces)

    assert asyncio.run(ask()) == (_direct(engine).text,) * 2


def test_a_seed_repeats_and_candidates_differ(client: openai.OpenAI, engine: NativeEngine) -> None:
    def ask(**options: Any) -> list[str]:
        answer = client.chat.completions.create(
            model="default", messages=TURNS, max_tokens=8, **options
        )
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8 * len(answer.choices)
        assert answer.usage.prompt_tokens == _direct(engine).usage.prompt_tokens
        return [str(choice.message.content) for choice in answer.choices]

    found = ask(n=6, seed=5)  # more than may work at once
    assert len(set(found)) == 6
    assert found[2:] == ask(n=4, seed=7)
    assert found[:1] == ask(seed=5)
    sampling = {"temperature": 1.0, "seed": 5}
    assert found[0] == _direct(engine, sampling=sampling).text, "temperature is 1 where left out"
    assert ask(seed=-1) == ask(seed=2**63 - 1) or ask(seed=-1) == ask(seed=-1)


def test_candidates_stream_side_by_side(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "default", "messages": TURNS, "max_tokens": 6, "seed": 3}
    whole = client.chat.completions.create(**options, n=6)
    texts = [""] * 6
    for chunk in client.chat.completions.create(**options, n=6, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_stop_string_ends_the_answer(client: openai.OpenAI, engine: NativeEngine) -> None:
    stop = _direct(engine, sampling={"max_tokens": 16}).text[4:7]
    options: dict[str, Any] = {"model": "default", "messages": TURNS, "max_tokens": 16}
    answer = client.chat.completions.create(**options, temperature=0, stop=[stop, "never said"])
    choice = answer.choices[0]
    direct = _direct(engine, sampling={"max_tokens": 16, "stop": (stop,)})
    assert (choice.finish_reason, choice.message.content) == ("stop", direct.text)
    assert choice.stop_reason == stop  # type: ignore[attr-defined]
    streamed = client.chat.completions.create(**options, temperature=0, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == direct.text


def test_log_probabilities(client: openai.OpenAI, engine: NativeEngine) -> None:
    options: dict[str, Any] = {
        "model": "default",
        "messages": TURNS,
        "max_tokens": 5,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    direct = _direct(engine, logprobs=3, sampling={"max_tokens": 5}).logprobs
    answer = client.chat.completions.create(**options)
    told = answer.choices[0].logprobs
    assert told is not None and told.content is not None
    streamed = [
        row
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices[0].logprobs
        for row in chunk.choices[0].logprobs.content or ()
    ]
    for rows in (told.content, streamed):
        assert [(row.token, row.logprob) for row in rows] == [(o.text, o.logprob) for o in direct]
        tops = [tuple((top.token, top.logprob) for top in row.top_logprobs) for row in rows]
        assert tops == [one.top for one in direct]
        assert [bytes(row.bytes or ()).decode() for row in rows] == [one.text for one in direct]


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept_to(stream: bool, client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}, "at": {"enum": [1, 2]}},
        "required": ["side", "at"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    made: Any = client.chat.completions.create(
        model="default", messages=TURNS, max_tokens=80, response_format=form, stream=stream
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in made)
    else:
        text = made.choices[0].message.content
        assert made.choices[0].ragwright["notes"]["grammar"]["complete"] is True
    found = json.loads(text)
    assert found["side"] in ("left", "right") and found["at"] in (1, 2)


def test_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=TURNS,
        max_tokens=300,
        seed=1,
        response_format={"type": "json_object"},
    )
    text = str(answer.choices[0].message.content)
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_what_the_engine_has_beyond_the_protocol(
    client: openai.OpenAI, engine: NativeEngine
) -> None:
    def ask(**extra: Any) -> Any:
        answer = client.chat.completions.create(
            model="default", messages=TURNS, max_tokens=40, temperature=0, extra_body=extra
        )
        return answer.choices[0]

    regex = ask(structured_outputs={"regex": "(red|blue) [0-9]{2}"})
    pattern = Grammar.regex("(red|blue) [0-9]{2}")
    assert regex.message.content == _direct(engine, grammar=pattern).text
    assert ask(structured_outputs={"grammar": 'root ::= "qz"'}).message.content == "qz"
    assert json.loads(ask(structured_outputs={"json": {"enum": ["a"]}}).message.content) == "a"
    spec = "streaming_llm:sinks=2,recent=8"
    shrunk = ask(ragwright={"kv": spec})
    sampling = {"max_tokens": 40}
    assert shrunk.message.content == _direct(engine, kv=parse_kv(spec), sampling=sampling).text
    assert shrunk.ragwright["notes"]["kv"]["policy"] == "streaming_llm"
    penalised = ask(repetition_penalty=1.8, top_k=20, min_p=0.01)
    sampling = {"max_tokens": 40, "repetition_penalty": 1.8}
    assert penalised.message.content == _direct(engine, sampling=sampling).text
    ids = ask(return_token_ids=True).token_ids
    assert ids == list(_direct(engine, sampling={"max_tokens": 40}).token_ids)


def test_a_long_dialogue_is_refused_or_cut(client: openai.OpenAI) -> None:
    turns: Any = [{"role": "user", "content": "fox " * 600}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=turns, max_tokens=4)
    assert refused.value.code == "prompt_too_long"
    assert "512" in refused.value.message
    answer = client.chat.completions.create(
        model="default",
        messages=turns,
        max_tokens=4,
        extra_body={"ragwright": {"truncate": "left"}},
    )
    assert answer.choices[0].ragwright["notes"]["truncated_tokens"] > 0  # type: ignore[attr-defined]


def test_a_deadline_cuts_the_answer_and_says_so(client: openai.OpenAI) -> None:
    def ask(seconds: float) -> Any:
        extra = {"ragwright": {"seconds": seconds}}
        return client.chat.completions.create(  # greedy: one drawn by chance may end before
            model="default", messages=TURNS, temperature=0, extra_body=extra
        )

    ask(30)  # the engine is open: its time to load is no part of this
    for seconds in (0.3, 0.6, 1.2, 2.4, 4.8):  # a busy machine may not begin within the first
        began = time.monotonic()
        try:
            choice = ask(seconds).choices[0]
        except openai.InternalServerError as late:
            assert late.status_code in (503, 504)
        else:
            break
        finally:
            assert time.monotonic() - began < seconds + 5
    assert choice.finish_reason == "length"
    assert choice.ragwright["finish_reason"] in ("deadline", "length")
    with pytest.raises(openai.InternalServerError) as late:
        ask(1e-9)
    assert late.value.status_code in (503, 504)


def test_parts_of_text_and_developers_are_read(client: openai.OpenAI, engine: NativeEngine) -> None:
    turns: Any = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}],
        },
        {"role": "assistant", "content": "runs", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "on?"},
    ]
    answer = client.chat.completions.create(
        model="default", messages=turns, max_tokens=8, temperature=0
    )
    told = [
        Message("system", "be brief"),
        Message("user", "the fox"),
        Message("assistant", "runs"),
        Message("user", "on?"),
    ]
    assert answer.choices[0].message.content == _direct(engine, messages=told).text


def test_a_prompt_seen_before_is_not_computed_again(served: Site, client: openai.OpenAI) -> None:
    turns: Any = [{"role": "user", "content": "a river runs north " * 10}]

    def cached(**options: Any) -> int:
        answer = client.chat.completions.create(
            model="default", messages=turns, max_tokens=1, **options
        )
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached() == 0
    assert cached() > 32
    assert cached(extra_body={"cache_salt": "of one user"}) == 0
    assert cached(extra_headers={"Authorization": f"Bearer {served.beta}"}) == 0


REFUSED = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": -1}, "presence_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"stop": [""]}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"extra_body": {"cache_salt": ""}}, "cache_salt"),
    ({"extra_body": {"made_up": 1}}, "made_up"),
    ({"extra_body": {"ragwright": {"index": "x"}}}, "ragwright.index"),
    ({"extra_body": {"ragwright": {"made_up": "x"}}}, "ragwright.made_up"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "messages.0.tool_call_id",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages.0.name"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        "messages.0.content.0.type",
    ),
]


@pytest.mark.parametrize(("options", "param"), REFUSED, ids=[param for _, param in REFUSED])
def test_what_cannot_be_done_is_refused_by_name(
    options: dict[str, Any], param: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "default", "messages": TURNS, **options})
    assert str(refused.value.param).startswith(param)
    assert refused.value.type == "invalid_request_error"
    assert param.split(".")[-1] in refused.value.message


@pytest.mark.parametrize(
    "options",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"if": 1}},
            }
        },
        {"extra_body": {"structured_outputs": {"regex": "("}}},
        {"extra_body": {"ragwright": {"adapters": ["unheard-of"]}}},
        {"extra_body": {"ragwright": {"kv": "unheard-of"}}},
        {"stop": "x", "response_format": {"type": "json_object"}},
    ],
)
def test_what_the_engine_refuses_is_the_callers_error(
    options: dict[str, Any], client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=TURNS, **options)
    assert refused.value.code
    stream: dict[str, Any] = {**options, "stream": True}
    with pytest.raises(openai.BadRequestError):
        list(client.chat.completions.create(model="default", messages=TURNS, **stream))


def test_harmless_parameters_change_nothing(client: openai.OpenAI, engine: NativeEngine) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=TURNS,
        max_completion_tokens=8,
        temperature=0,
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        tool_choice="none",
        modalities=["text"],
        n=1,
    )
    assert answer.choices[0].message.content == _direct(engine).text


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="defualt", messages=TURNS)
    assert unknown.value.code == "model_not_found"
    assert "'default'" in unknown.value.message


def test_no_key_no_answer(served: Site) -> None:
    with served.client() as http:
        answer = http.post("/v1/chat/completions", json={"model": "default", "messages": TURNS})
    assert answer.status_code == 401
