"""Every finish reason is reached, and every length of prompt has its result or its error."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from inference import (
    FinishReason,
    Grammar,
    InferenceInputError,
    Message,
    Output,
    Request,
    SamplingParams,
)
from inference.errors import PromptTooLong
from inference.native.engine import NativeEngine
from tests.house.source import ROOT
from tests.inference.conftest import open_engine
from tests.inference.tiny import POISON, checkpoint

Tiny = Callable[..., NativeEngine]
CONTEXT = 32


def ask(engine: NativeEngine, **options: Any) -> Output:
    return engine.generate([Request(**{"prompt": "fox", **options})])[0]


def stopped(tiny: Tiny) -> Output:
    return ask(tiny(), grammar=Grammar.regex("ab"))


def cut_by_a_string(tiny: Tiny) -> Output:
    engine = tiny(endless=True, ascii_only=True)
    text = ask(engine, sampling=SamplingParams(max_tokens=20)).text
    return ask(engine, sampling=SamplingParams(max_tokens=20, stop=(text[4:6],)))


def cut_by_length(tiny: Tiny) -> Output:
    return ask(tiny(endless=True), sampling=SamplingParams(max_tokens=3))


def aborted(tiny: Tiny) -> Output:
    engine = tiny(endless=True, context=100_000)
    outputs: list[Output] = []
    params = SamplingParams(max_tokens=90_000)
    worker = threading.Thread(
        target=lambda: outputs.append(ask(engine, id="doomed", sampling=params))
    )
    worker.start()
    while not engine.abort("doomed"):
        pass
    worker.join(60)
    return outputs[0]


def late(tiny: Tiny) -> Output:
    return ask(tiny(endless=True), seconds=1e-9)


def failed(tiny: Tiny) -> Output:
    request = Request(token_ids=[POISON])
    return tiny(poison=math.nan, endless=True).generate([request])[0]


ENDS: dict[FinishReason, Callable[[Tiny], Output]] = {
    FinishReason.STOP: stopped,
    FinishReason.STOP_STRING: cut_by_a_string,
    FinishReason.LENGTH: cut_by_length,
    FinishReason.ABORTED: aborted,
    FinishReason.DEADLINE: late,
    FinishReason.FAILED: failed,
}


@pytest.mark.parametrize("reason", FinishReason)
def test_every_reason_is_reached_and_documented(tiny: Tiny, reason: FinishReason) -> None:
    output = ENDS[reason](tiny)
    assert output.finish_reason is reason
    assert output.to_dict()["finish_reason"] == reason.value
    assert ("error" in output.notes) == (reason is FinishReason.FAILED)
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    section = page.partition("## How a generation ends")[2].partition("\n## ")[0]
    assert f"| `{reason.value}` |" in section


KINDS = ["prompt", "token_ids", "messages"]
TEMPLATE_TOKENS = 3
"""Of a dialogue of one turn: its opening, its end, and the opening of the answer."""


def of_length(kind: str, tokens: int, **options: Any) -> Request:
    """A request whose prompt has exactly so many tokens."""
    if kind == "token_ids":
        return Request(token_ids=[85] * tokens, **options)
    if kind == "prompt":
        return Request(prompt="q" * tokens, **options)
    return Request(messages=[Message("user", "q" * (tokens - TEMPLATE_TOKENS))], **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, TEMPLATE_TOKENS, CONTEXT // 2, CONTEXT - 1])
@pytest.mark.parametrize("most", [1, 5, CONTEXT, 10**9])
def test_a_prompt_that_fits_is_answered_up_to_the_context(
    tiny: Tiny, kind: str, tokens: int, most: int
) -> None:
    tokens = max(tokens, TEMPLATE_TOKENS) if kind == "messages" else tokens
    engine = tiny(context=CONTEXT, endless=True)
    request = of_length(kind, tokens, sampling=SamplingParams(max_tokens=most))
    assert engine.count_tokens(request) == tokens
    (output,) = engine.generate([request])
    assert output.usage.prompt_tokens == tokens
    assert len(output.token_ids) == min(most, CONTEXT - tokens)
    assert (output.finish_reason, output.stats.truncated_tokens) == (FinishReason.LENGTH, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beyond", [0, 1, 200])
def test_a_prompt_that_leaves_no_room_is_refused_or_cut(tiny: Tiny, kind: str, beyond: int) -> None:
    engine = tiny(context=CONTEXT, endless=True)
    tokens = CONTEXT + beyond
    with pytest.raises(PromptTooLong, match=rf"{tokens} tokens .* at most {CONTEXT - 1} tokens"):
        engine.generate([of_length(kind, tokens)])
    for most, kept in ((1, CONTEXT - 1), (7, CONTEXT - 7), (10**9, CONTEXT // 2)):
        params = SamplingParams(max_tokens=most)
        (output,) = engine.generate([of_length(kind, tokens, sampling=params, truncate="left")])
        assert output.usage.prompt_tokens == kept
        assert output.stats.truncated_tokens == tokens - kept
        assert len(output.token_ids) == min(most, CONTEXT - kept)


@pytest.mark.parametrize(("kind", "nothing"), [("prompt", ""), ("token_ids", []), ("messages", [])])
def test_a_prompt_of_nothing_is_refused(kind: str, nothing: object) -> None:
    with pytest.raises(InferenceInputError, match=f"has an empty {kind}"):
        Request(**{kind: nothing})  # type: ignore[arg-type]


def test_a_text_that_the_tokenizer_makes_nothing_of_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", template="{{ '' }}")
    words = AutoTokenizer.from_pretrained(folder)
    words.backend_tokenizer.normalizer = normalizers.Strip()
    words.save_pretrained(folder)
    engine = open_engine(folder)
    for request in (
        Request(prompt="  \n "),
        Request(messages=[Message("user", "fox")]),
        Request(messages=[Message("user", "<|end|>")]),
    ):
        for call in (engine.count_tokens, lambda r: engine.generate([r])):
            with pytest.raises(InferenceInputError, match="a prompt of no tokens; give a text"):
                call(request)
    assert engine.generate([Request(prompt=" fox ")])[0].usage.prompt_tokens > 0
    engine.close()
