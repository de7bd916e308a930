"""vLLM's real server on the default model: the engine over it, and the shipped workflows."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from inference import (
    Engine,
    FinishReason,
    Grammar,
    InferenceInputError,
    Message,
    Request,
    SamplingParams,
)
from inference.engine import OpenAIConfig, VLLMConfig
from inference.native.engine import NativeEngine
from inference.openai.engine import OpenAIEngine
from inference.vllm.engine import VLLMEngine
from tests.api.conftest import (
    Ragwright,
    ragwright,  # noqa: F401
)

pytestmark = [pytest.mark.default_model, pytest.mark.timeout(900)]

DATA = Path(__file__).resolve().parents[2] / "data" / "corpus" / "structures"


@pytest.fixture
def vllm_server(vllm_engine: Engine) -> VLLMEngine:
    if not isinstance(vllm_engine, VLLMEngine):
        pytest.skip("vLLM runs in this process; there is no server")
    return vllm_engine


@pytest.fixture
def remote(vllm_server: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEngine]:
    """The `openai` engine on vLLM's server, set up by the environment alone."""
    monkeypatch.setenv("RAGWRIGHT_OPENAI_BASE_URL", vllm_server.server.url)
    monkeypatch.setenv("RAGWRIGHT_OPENAI_API_KEY", vllm_server.server.key)
    engine = OpenAIEngine.from_config(OpenAIConfig())
    yield engine
    engine.close()


def _request(text: str, max_tokens: int = 12, **sampling: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return Request(messages=[Message("user", text)], sampling=params)


def test_the_server_is_discovered(remote: OpenAIEngine) -> None:
    assert (remote.model, remote.context_length) == ("default", 1536)
    assert remote.capabilities == OpenAIConfig.provides


def test_greedy_and_scores_agree_with_the_native_engine(
    remote: OpenAIEngine, default_engine: NativeEngine
) -> None:
    request = _request("Name three rivers of Europe.")
    (there,), (here,) = remote.generate([request]), default_engine.generate([request])
    assert remote.count_tokens(request) == default_engine.count_tokens(request)
    assert there.token_ids == here.token_ids
    assert there.text == here.text
    continuations = [" The Danube", [504, 42]]
    for ours, theirs in zip(
        default_engine.score(request, continuations),
        remote.score(request, continuations),
        strict=True,
    ):
        assert theirs.token_ids == ours.token_ids
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-3)


def test_grammars_of_each_kind_hold_at_both_endpoints(remote: OpenAIEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
        "required": ["city", "capital"],
    }
    judges: dict[Grammar, Callable[[str], object]] = {
        Grammar.json_schema(schema): lambda text: jsonschema.validate(json.loads(text), schema),
        Grammar.regex("[a-c]{2,4}-(north|south)"): lambda text: text.index("th"),
        Grammar.ebnf('root ::= "(" root ")" | "x"'): lambda text: text.strip("()").index("x"),
    }
    for grammar, judge in judges.items():
        for base in (_request("Is Paris the capital of France?", 60), Request(prompt="Paris")):
            (output,) = remote.generate([replace(base, grammar=grammar)])
            assert output.finish_reason is FinishReason.STOP
            assert output.notes["grammar"] == {"kind": grammar.kind, "complete": True}
            judge(output.text)
    cut = replace(_request("Paris?", 3), grammar=Grammar.regex("a{50}"))
    assert remote.generate([cut])[0].notes["grammar"]["complete"] is False
    (unknown,) = [replace(cut, grammar=Grammar.json_schema({"type": "integer", "multipleOf": 7}))]
    with pytest.raises(InferenceInputError, match="not supported by xgrammar"):
        remote.generate([unknown])


def test_log_probabilities_are_those_of_the_native_engine(
    remote: OpenAIEngine, default_engine: NativeEngine
) -> None:
    for base in (_request("Name three rivers of Europe."), Request(prompt="The Danube")):
        request = replace(base, sampling=SamplingParams(max_tokens=12), logprobs=3)
        (output,) = remote.generate([request])
        assert [one.id for one in output.logprobs] == list(output.token_ids)
        (score,) = default_engine.score(base, [output.token_ids])
        found = [one.logprob for one in output.logprobs]
        assert found == pytest.approx(score.logprobs, abs=1e-3)
        assert all(one.top[0] == (one.text, one.logprob) for one in output.logprobs)


def test_tenants_share_no_cached_prefix(remote: OpenAIEngine) -> None:
    text = "The river runs north, and the keys lie in the drawer of the old desk. " * 20
    asked = [Request(prompt=text, tenant=tenant) for tenant in ("", "", "a/@", "a/@", "b", "")]
    cached = [remote.generate([request])[0].usage.cached_tokens for request in asked]
    assert [found > 0 for found in cached] == [False, True, False, True, False, True]


def test_adapters_are_refused_by_name(remote: OpenAIEngine) -> None:
    request = Request(prompt="x", adapters=("law",))
    with pytest.raises(InferenceInputError, match="gives adapters"):
        remote.generate([request])
    with pytest.raises(InferenceInputError, match="gives adapters"):
        remote.score(request, ["y"])


def test_every_sampling_parameter_arrives(remote: OpenAIEngine) -> None:
    drawn = {"temperature": 1.0, "seed": 2**64 - 1}
    (free, one, likely) = remote.generate(
        [
            _request("Tell me a story.", **drawn),
            _request("Tell me a story.", **drawn, top_k=1),
            _request("Tell me a story.", **drawn, min_p=1.0),
        ]
    )
    (greedy,) = remote.generate([_request("Tell me a story.")])
    assert one.token_ids == likely.token_ids == greedy.token_ids != free.token_ids


def test_stop_strings_and_truncation_are_named(remote: OpenAIEngine) -> None:
    (whole,) = remote.generate([_request("Tell me a story.")])
    stop = whole.text.split()[2]
    (cut,) = remote.generate([_request("Tell me a story.", stop=(stop,))])
    assert cut.finish_reason is FinishReason.STOP_STRING
    assert cut.text == whole.text.partition(stop)[0]
    long = Request(prompt="fox " * 2000, truncate="left", sampling=SamplingParams(max_tokens=2))
    (output,) = remote.generate([long])
    assert output.stats.truncated_tokens == remote.count_tokens(long) - output.usage.prompt_tokens


def test_an_abort_ends_the_stream_and_keeps_the_text(remote: OpenAIEngine) -> None:
    request = _request("Tell me a long story.", 1000)

    async def read() -> tuple[str, FinishReason]:
        text, reason = "", None
        async with aclosing(remote.stream(request)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                if chunk.output is None:
                    assert remote.abort(request.id)
                else:
                    reason = chunk.output.finish_reason
                    assert chunk.output.text == text
        assert reason is not None
        return text, reason

    text, reason = asyncio.run(read())
    assert text
    assert reason is FinishReason.ABORTED
    assert not remote.abort(request.id)


def test_a_deadline_keeps_what_came(remote: OpenAIEngine) -> None:
    request = Request(prompt="Once", sampling=SamplingParams(max_tokens=1400), seconds=1.0)
    (output,) = remote.generate([request])
    assert output.finish_reason is FinishReason.DEADLINE
    assert output.usage.seconds < 5


@pytest.mark.parametrize("workflow", ["naive_rag", "closed_book"])
def test_shipped_workflows_run(
    workflow: str,
    remote: OpenAIEngine,
    ragwright: Ragwright,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from inference.models import models_home

    (tmp_path / "models").symlink_to(models_home(), target_is_directory=True)
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path))
    where = ["--docs", DATA, "--input", "k=2"] if workflow == "naive_rag" else []
    question = ["--question", "Who designed the Harrow Bridge?"]
    status, out, err = ragwright(
        "run", workflow, *where, *question, "--engine", "openai", "--model", "default", "--json"
    )
    assert status == 0, err
    result = json.loads(out)
    assert result["outputs"]["answer"]
    assert result["usage"]["completion_tokens"] > 0
    assert os.environ["RAGWRIGHT_OPENAI_API_KEY"] not in out + err


def test_the_engine_has_what_its_row_promises(vllm_engine: Engine) -> None:
    assert vllm_engine.capabilities == VLLMConfig.provides
