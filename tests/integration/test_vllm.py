"""vLLM's real server on the default model: the engine over it, and the shipped workflows."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from inference import FinishReason, Message, Request, SamplingParams
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
def remote(vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEngine]:
    """The `openai` engine on vLLM's server, set up by the environment alone."""
    monkeypatch.setenv("RAGWRIGHT_OPENAI_BASE_URL", vllm_engine.server.url)
    monkeypatch.setenv("RAGWRIGHT_OPENAI_API_KEY", vllm_engine.server.key)
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


def test_the_engine_has_what_its_row_promises(vllm_engine: VLLMEngine) -> None:
    assert vllm_engine.capabilities == VLLMConfig.provides
