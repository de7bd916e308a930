"""The engine contract over every row of the engine table, each on a real model.

`native` and `openai` run a tiny one, the latter in a server of transformers, and `ragwright` is the
`openai` engine over this project's own server; `vllm` runs the default model in vLLM's server where
`make vllm-env` was made, and inside this process where vLLM is installed (tests/integration runs
this file there).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from inference import (
    Capability,
    Engine,
    FinishReason,
    Grammar,
    InferenceError,
    InferenceInputError,
    Message,
    Request,
    SamplingParams,
)
from inference.engine import ENGINES, EngineConfig, NativeConfig, OpenAIConfig, VLLMConfig
from tests.inference.tiny import checkpoint
from tests.servers import SERVED, VLLM, ragwright_serves, require_vllm, transformers_serve

# A row here for every row of the table, and whether its environment may be absent.
ROWS = [
    pytest.param("native"),
    pytest.param("openai"),
    pytest.param("vllm", marks=pytest.mark.timeout(900)),
    pytest.param(OURS := "ragwright"),
]


def test_every_row_is_run_here() -> None:
    assert [row.values[0] for row in ROWS if row.values[0] != OURS] == list(ENGINES)


@pytest.fixture(scope="module", params=ROWS)
def config(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineConfig]:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "vllm":
        require_vllm()
        yield VLLM
        return
    model = str(checkpoint(folder, context=256, endless=True, ascii_only=True))
    if request.param == "native":
        yield NativeConfig(model=model, dtype="float32", device="cpu")
        return
    if request.param == OURS:
        with ragwright_serves(model) as (url, key), pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAGWRIGHT_OPENAI_API_KEY", key)
            yield OpenAIConfig(base_url=url, model="default", context_length=256)
        return
    with transformers_serve(folder, tmp_path_factory.mktemp("served")) as url:
        yield OpenAIConfig(base_url=url, model=SERVED, context_length=256, tokenizer=model)


@pytest.fixture(scope="module")
def engine(config: EngineConfig, request: pytest.FixtureRequest) -> Iterator[Engine]:
    if isinstance(config, VLLMConfig):
        yield request.getfixturevalue("vllm_engine")
        return
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
    assert engine.context_length == getattr(config, "context_length", 256)


def test_outputs_come_in_order_and_account_for_themselves(engine: Engine) -> None:
    requests = [_request("one"), _request("two"), _request("three")]
    outputs = engine.generate(requests)
    assert [output.id for output in outputs] == [request.id for request in requests]
    for request, output in zip(requests, outputs, strict=True):
        assert output.usage.completion_tokens == 6
        assert len(output.token_ids) == (0 if "token_ids" in output.notes else 6)
        assert output.usage.prompt_tokens == engine.count_tokens(request)
        assert 0 <= output.usage.cached_tokens < output.usage.prompt_tokens
        assert output.usage.model_calls == 1
        assert output.finish_reason is FinishReason.LENGTH


def test_one_bad_request_refuses_all(engine: Engine) -> None:
    bad = Request(prompt="fox " * 2000)
    with pytest.raises(InferenceInputError, match=str(engine.context_length)):
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


def test_an_answer_keeps_to_its_grammar(engine: Engine) -> None:
    if Capability.GRAMMAR not in engine.capabilities:
        pytest.skip("this engine does not keep to grammars")
    grammar = Grammar.json_schema({"enum": ["left", "right"]})
    request = Request(
        messages=[Message("user", "the fox")],
        grammar=grammar,
        sampling=SamplingParams(max_tokens=40),
    )
    (output,) = engine.generate([request])
    assert json.loads(output.text) in ("left", "right")
    assert output.notes["grammar"] == {"kind": "json_schema", "complete": True}
    with pytest.raises(InferenceInputError, match="cannot be compiled"):
        engine.generate([Request(prompt="x", grammar=Grammar.json_schema({"pattern": "[z-a]"}))])


def test_log_probabilities_come_with_every_token(engine: Engine) -> None:
    if Capability.LOGPROBS not in engine.capabilities:
        pytest.skip("this engine gives no log-probabilities")
    sampling = SamplingParams(max_tokens=6)
    (output,) = engine.generate(
        [Request(messages=[Message("user", "the fox")], sampling=sampling, logprobs=2)]
    )
    assert [one.id for one in output.logprobs] == list(output.token_ids)
    for one in output.logprobs:
        assert one.top[0] == (one.text, one.logprob)
        assert 0 >= one.top[0][1] >= one.top[1][1]
        assert len(one.top) == 2


def test_aborting_what_does_not_run_says_so(engine: Engine) -> None:
    assert engine.abort("nobody") is False


def test_a_closed_engine_refuses_work(config: EngineConfig) -> None:
    if isinstance(config, VLLMConfig):
        pytest.skip("a second start of vLLM takes minutes; its fixture checks the closing")
    engine = config.open()
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.generate([_request()])


def test_unknown_options_are_refused(config: EngineConfig) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        type(config).model_validate({"unheard_of": 1})
