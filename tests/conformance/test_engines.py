"""The engine contract over every row of the engine table, on a tiny real model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference import (
    Capability,
    Engine,
    FinishReason,
    InferenceError,
    InferenceInputError,
    Message,
    Request,
    SamplingParams,
)
from inference.engine import ENGINES, EngineConfig, NativeConfig
from tests.inference.tiny import checkpoint


def _native(model: Path) -> EngineConfig:
    return NativeConfig(model=str(model), dtype="float32", device="cpu")


# A row here for every row of the table: how the suite configures it.
CONFIGS = {"native": _native}


def test_every_row_is_run_here() -> None:
    assert CONFIGS.keys() == ENGINES.keys()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def config(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EngineConfig:
    model = checkpoint(tmp_path_factory.mktemp("model"), context=256, endless=True)
    return CONFIGS[request.param](model)


@pytest.fixture(scope="module")
def engine(config: EngineConfig) -> Iterator[Engine]:
    opened = config.open()
    yield opened
    opened.close()


def _request(text: str = "the fox", **options: object) -> Request:
    return Request(
        messages=[Message("user", text)],
        sampling=SamplingParams(max_tokens=6, **options),  # type: ignore[arg-type]
    )


def test_it_is_an_engine_with_the_declared_capabilities(
    engine: Engine, config: EngineConfig
) -> None:
    assert isinstance(engine, Engine)
    assert engine.capabilities <= type(config).provides
    assert engine.context_length == 256


def test_outputs_come_in_order_and_account_for_themselves(engine: Engine) -> None:
    requests = [_request("one"), _request("two"), _request("three")]
    outputs = engine.generate(requests)
    assert [output.id for output in outputs] == [request.id for request in requests]
    for request, output in zip(requests, outputs, strict=True):
        assert output.usage.completion_tokens == len(output.token_ids) == 6
        assert output.usage.prompt_tokens == engine.count_tokens(request)
        assert 0 <= output.usage.cached_tokens < output.usage.prompt_tokens
        assert output.usage.model_calls == 1
        assert output.finish_reason is FinishReason.LENGTH


def test_one_bad_request_refuses_all(engine: Engine) -> None:
    bad = Request(prompt="fox " * 2000)
    with pytest.raises(InferenceInputError, match="256"):
        engine.generate([_request(), bad])


def test_greedy_is_the_same_every_time_and_a_seed_repeats(engine: Engine) -> None:
    assert engine.generate([_request()])[0].text == engine.generate([_request()])[0].text
    if Capability.SEED in engine.capabilities:
        first, again = (
            engine.generate([_request(temperature=1.0, seed=5)])[0].token_ids for _ in range(2)
        )
        assert first == again


def test_a_stream_says_what_generate_says(engine: Engine) -> None:
    if Capability.STREAM not in engine.capabilities:
        pytest.skip("this engine does not stream")

    async def collect() -> tuple[str, str]:
        chunks = [chunk async for chunk in engine.stream(_request())]
        assert [chunk.output is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
        last = chunks[-1].output
        assert last is not None
        return "".join(chunk.text for chunk in chunks), last.text

    streamed, whole = asyncio.run(collect())
    assert streamed == whole == engine.generate([_request()])[0].text


def test_scores_are_log_probabilities(engine: Engine) -> None:
    if Capability.SCORE not in engine.capabilities:
        pytest.skip("this engine does not score")
    scores = engine.score(_request(), [" jumps", " runs north"])
    assert all(logprob <= 0 for score in scores for logprob in score.logprobs)
    assert all(len(score.token_ids) == len(score.logprobs) for score in scores)


def test_aborting_what_does_not_run_says_so(engine: Engine) -> None:
    assert engine.abort("nobody") is False


def test_a_closed_engine_refuses_work(config: EngineConfig) -> None:
    engine = config.open()
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.generate([_request()])


def test_unknown_options_are_refused(config: EngineConfig) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        type(config).model_validate({"unheard_of": 1})
