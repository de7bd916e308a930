"""Completions, embeddings, tokens and models as OpenAI's own client sees them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from inference import Request, SamplingParams
from inference.native.engine import NativeEngine
from retrieval.embedding import default_embedder
from tests.api.http.openai.conftest import asynchronous
from tests.api.http.site import Site


def _direct(engine: NativeEngine, prompt: str, **options: Any) -> Any:
    sampling = SamplingParams(**{"max_tokens": 6, **options.pop("sampling", {})})
    return engine.generate([Request(prompt=prompt, sampling=sampling, **options)])[0]


def test_prompts_in_four_ways(client: openai.OpenAI, engine: NativeEngine) -> None:
    ids = {text: engine.encode_text(text) for text in ("the fox", "a river")}
    ways: list[Any] = ["the fox", ["the fox", "a river"], ids["the fox"], list(ids.values())]
    for prompt in ways:
        answer = client.completions.create(
            model="default", prompt=prompt, max_tokens=6, temperature=0
        )
        direct = [_direct(engine, text) for text in list(ids)[: len(answer.choices)]]
        assert [choice.text for choice in answer.choices] == [one.text for one in direct]
        assert [choice.index for choice in answer.choices] == list(range(len(direct)))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in direct)
        assert answer.usage.completion_tokens == 6 * len(direct)


def test_many_prompts_and_candidates_come_in_their_order(
    client: openai.OpenAI, engine: NativeEngine
) -> None:
    prompts = [f"fox number {at}" for at in range(5)]
    options: dict[str, Any] = {"model": "default", "prompt": prompts, "max_tokens": 3, "seed": 9}
    answer = client.completions.create(**options, n=2)
    sampling = {"max_tokens": 3, "temperature": 1.0}
    wanted = [
        _direct(engine, prompt, sampling={**sampling, "seed": seed}).text
        for prompt in prompts
        for seed in (9, 10)
    ]
    assert [choice.text for choice in answer.choices] == wanted
    texts = [""] * 10
    for chunk in client.completions.create(**options, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == wanted


def test_without_a_number_of_tokens_there_are_sixteen(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="x")
    assert answer.usage is not None and answer.usage.completion_tokens == 16


def test_log_probabilities_and_where_their_texts_begin(
    client: openai.OpenAI, engine: NativeEngine
) -> None:
    options: dict[str, Any] = {
        "model": "default",
        "prompt": "the fox",
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": 2,
    }
    direct = _direct(engine, "the fox", logprobs=2).logprobs
    told = client.completions.create(**options).choices[0].logprobs
    assert told is not None and told.tokens is not None and told.text_offset is not None
    assert told.tokens == [one.text for one in direct]
    assert told.token_logprobs == [one.logprob for one in direct]
    assert told.top_logprobs == [dict(one.top) for one in direct]
    text = "".join(told.tokens)
    for token, at in zip(told.tokens, told.text_offset, strict=True):
        assert text[at : at + len(token)] == token
    streamed = [
        chunk.choices[0].logprobs
        for chunk in client.completions.create(**options, stream=True)
        if chunk.choices[0].logprobs
    ]
    assert [t for one in streamed for t in one.tokens or ()] == told.tokens
    assert [at for one in streamed for at in one.text_offset or ()] == told.text_offset


def test_a_stream_with_its_usage_all_along(served: Site, engine: NativeEngine) -> None:
    async def ask() -> list[Any]:
        async with asynchronous(served) as client:
            stream = await client.completions.create(
                model="default",
                prompt="the fox",
                max_tokens=6,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
                extra_body={"return_token_ids": True},
            )
            return [chunk async for chunk in stream]

    chunks = asyncio.run(ask())
    direct = _direct(engine, "the fox")
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 6
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {direct.usage.prompt_tokens}
    ids = [token for chunk in chunks[:-1] for token in chunk.choices[0].token_ids]
    assert ids == list(direct.token_ids)


def test_the_prompt_is_scored(client: openai.OpenAI, engine: NativeEngine) -> None:
    ids = engine.encode_text("the quick brown fox")
    answer = client.completions.create(
        model="default", prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    rows = answer.choices[0].prompt_logprobs  # type: ignore[attr-defined]
    assert rows[0] is None and len(rows) == len(ids)
    (score,) = engine.score(Request(token_ids=ids[:1]), [ids[1:]])
    found = [row[str(token)]["logprob"] for row, token in zip(rows[1:], ids[1:], strict=True)]
    assert found == pytest.approx(score.logprobs)


REFUSED = [
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["x", 1]}, "prompt"),
    ({"prompt": ["x"] * 100, "n": 2}, "n"),
    ({"extra_body": {"prompt_logprobs": 5}}, "prompt_logprobs"),
    ({"stream": True, "extra_body": {"prompt_logprobs": 0}}, "prompt_logprobs"),
]


@pytest.mark.parametrize(("options", "param"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    options: dict[str, Any], param: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**{"model": "default", "prompt": "x", **options})
    assert str(refused.value.param).startswith(param)


def test_a_token_that_is_none_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="not in the vocabulary"):
        client.completions.create(model="default", prompt=[5, 10**6])


def test_tokens_are_told(served: Site, engine: NativeEngine) -> None:
    with served.client(served.alpha) as http:

        def ask(**body: Any) -> httpx2.Response:
            return http.post("/tokenize", json={"model": "default", **body})

        turns = [{"role": "user", "content": "the fox"}]
        dialogue = ask(messages=turns, add_generation_prompt=True).json()
        assert dialogue["count"] == len(dialogue["tokens"]) > len(engine.encode_text("the fox"))
        bare = ask(prompt="the fox", add_special_tokens=False).json()
        assert bare["tokens"] == engine.encode_text("the fox")
        assert bare["max_model_len"] == 512
        assert ask(prompt="x", messages=turns).status_code == 400
        assert ask().status_code == 400


@pytest.mark.default_model
def test_vectors_are_those_of_the_index(client: openai.OpenAI) -> None:
    texts = ["a fox", "the river runs north"]
    embedder = default_embedder()
    wanted = embedder.embed(texts)
    plain = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="minilm", input=texts)  # the client's own is base64
    for answer in (plain, packed):
        found = np.array([row.embedding for row in answer.data], dtype=np.float32)
        np.testing.assert_array_equal(found, wanted)
        assert [row.index for row in answer.data] == [0, 1]
        assert answer.usage.prompt_tokens == sum(map(embedder.count, texts))
    one = client.embeddings.create(model="minilm", input=texts[0], dimensions=384)
    assert len(one.data) == 1
    raw = client.with_raw_response.embeddings.create(
        model="minilm", input=texts[0], encoding_format="base64"
    )
    (row,) = raw.http_response.json()["data"]
    unpacked = np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4")
    np.testing.assert_array_equal(unpacked, wanted[0])


@pytest.mark.default_model
@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"dimensions": 100}, "dimensions"),
        ({"input": [1, 2, 3]}, "input.0"),
        ({"input": [[1, 2]]}, "input.0"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x", ""]}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_vectors_that_cannot_be(options: dict[str, Any], param: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(**{"model": "minilm", "input": "x", **options})
    assert str(refused.value.param).startswith(param)


@pytest.mark.default_model
def test_a_text_beyond_the_embedder_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="shorten it"):
        client.embeddings.create(model="minilm", input="fox " * 1000)


def test_models_are_listed(client: openai.OpenAI, served: Site) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"default", "tiny", "minilm", "workflow/auto_rag", "workflow/closed_book"} <= set(models)
    assert models["default"].owned_by == "ragwright"
    assert models["default"].max_model_len == 512  # type: ignore[attr-defined]
    assert client.models.retrieve("workflow/auto_rag").id == "workflow/auto_rag"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("workflow/unheard_of")
    assert served.settings.model is not None
    assert served.settings.model not in str(models), "where it lies is nobody's business"
