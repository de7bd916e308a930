"""One request that cannot go on ends as failed; the others, and later ones, do not notice."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference import (
    Chunk,
    FinishReason,
    Grammar,
    InferenceError,
    Message,
    Output,
    Request,
    SamplingParams,
)
from inference.errors import BrokenLogits, RequestFailed
from inference.native.answer import Answer
from inference.native.engine import NativeEngine
from inference.native.sampling import choose, require_sound
from inference.native.task import Job
from tests.inference.conftest import open_engine
from tests.inference.grammars import matcher
from tests.inference.tiny import POISON, checkpoint

Tiny = Callable[..., NativeEngine]
BAD = Request(token_ids=[5, POISON, 9], id="bad")


def good(count: int = 3) -> list[Request]:
    return [
        Request(prompt=f"fox {n}", id=f"g{n}", sampling=SamplingParams(max_tokens=8))
        for n in range(count)
    ]


def test_a_broken_row_fails_its_request_only(tiny: Tiny) -> None:
    engine = tiny(poison=math.nan, endless=True)
    wanted = engine.generate(good())
    seen: list[str] = []
    outputs = engine.generate([BAD, *good()], on_output=lambda o: seen.append(o.id))
    assert [o.token_ids for o in outputs[1:]] == [o.token_ids for o in wanted]
    assert sorted(seen) == ["bad", "g0", "g1", "g2"]
    failed = outputs[0]
    assert (failed.finish_reason, failed.text, failed.token_ids) == (FinishReason.FAILED, "", ())
    assert failed.usage.prompt_tokens == 3
    error = failed.to_dict()["notes"]["error"]
    assert error["code"] == "broken_logits"
    assert "NaN for 320 of 320 tokens" in error["message"]
    with pytest.raises(RequestFailed, match="request 'bad' failed: the model computed") as caught:
        failed.raise_if_failed()
    assert caught.value.code == "broken_logits"
    assert engine._core().blocks.used == 0
    assert [o.token_ids for o in engine.generate(good())] == [o.token_ids for o in wanted]


def test_a_grammar_does_not_hide_a_broken_row(tiny: Tiny) -> None:
    request = Request(token_ids=BAD.token_ids, grammar=Grammar.regex("a+"))
    (output,) = tiny(poison=math.nan, endless=True).generate([request])
    assert output.notes["error"]["code"] == "broken_logits"


def test_a_grammar_that_leads_nowhere_fails_its_request_only(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", endless=True)
    file = folder / "tokenizer.json"
    words = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    vocabulary["\u0100" * 3] = vocabulary.pop("Q")  # this model can write anything but a Q
    file.write_text(json.dumps(words), encoding="utf-8")
    engine = open_engine(folder)
    wanted = engine.generate(good())
    stuck = Request(prompt="fox", id="stuck", grammar=Grammar.regex("abaQ+"))
    failed, *others = engine.generate([stuck, *good()])
    engine.close()
    assert (failed.finish_reason, failed.text) == (FinishReason.FAILED, "aba")
    assert failed.notes["error"]["code"] == "grammar_dead_end"
    assert "allows nothing after" in failed.notes["error"]["message"]
    assert failed.notes["grammar"] == {"kind": "regex", "complete": False}
    assert [o.token_ids for o in others] == [o.token_ids for o in wanted]


def test_a_stream_ends_with_the_failed_output(tiny: Tiny) -> None:
    engine = tiny(poison=math.nan, endless=True)

    async def collect() -> list[Chunk]:
        return [chunk async for chunk in engine.stream(BAD)]

    (last,) = asyncio.run(collect())
    assert last.output is not None and last.output.finish_reason is FinishReason.FAILED


def test_a_broken_score_is_an_error(tiny: Tiny) -> None:
    engine = tiny(poison=math.nan)
    with pytest.raises(BrokenLogits, match="NaN for 320 of 320"):
        engine.score(BAD, [[7, 8]])
    assert engine.score(Request(token_ids=[5, 9]), [[7, 8]])[0].total < 0


def take(engine: NativeEngine, row: torch.Tensor, produced: int, other: bool) -> Output:
    """What an answer says that gets `row` after some tokens; `other` gives a foreign grammar."""
    model = engine._model()
    job = Job(Request(token_ids=[5], sampling=SamplingParams(max_tokens=9)), [5])
    chunks: list[Chunk] = []
    rows = engine._admission().rows(job)
    answer = Answer(model, job, rows, chunks.append, 1)  # type: ignore[arg-type]
    for token in range(70, 70 + produced):
        logits = torch.nn.functional.one_hot(torch.tensor([token]), 320).float()
        assert answer.take(rows[0], logits) is None
    job.matcher = matcher(Grammar.regex("a+")) if other else None
    reason = answer.take(rows[0], row[None])
    assert reason is FinishReason.FAILED
    answer.end(reason)
    output = chunks[-1].output
    assert output is not None and output.text == "".join(chunk.text for chunk in chunks)
    return output


def test_the_text_so_far_is_kept(tiny: Tiny) -> None:
    engine = tiny(endless=True)
    output = take(engine, torch.full((320,), math.nan), 4, other=False)
    assert output.token_ids == (70, 71, 72, 73)
    assert output.text == engine._model().decode([70, 71, 72, 73])


def test_a_defect_of_ours_is_logged_with_its_traceback(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        output = take(tiny(endless=True), torch.zeros(320), 2, other=True)
    assert output.notes["error"]["code"] == "defect"
    assert output.notes["error"]["message"].startswith("AssertionError: ")
    assert "Traceback" in caplog.text and "matcher.py" in caplog.text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0.0, math.nan, 1.0], r"NaN for 1 of 3 tokens"),
        ([math.inf, 1.0, math.inf], r"\+inf for 2 of 3 tokens"),
        ([math.inf, math.nan, 1.0], r"NaN for 1 of 3 tokens and \+inf for 1 of 3"),
        ([-math.inf] * 3, r"-inf for 3 of 3 tokens"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_no_distribution(
    values: list[float], says: str, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature)
    with pytest.raises(BrokenLogits, match=says):
        choose(torch.tensor(values), params, 0, 0, ())
    with pytest.raises(BrokenLogits, match=says):
        require_sound(torch.tensor([[0.0, 1.0, 2.0], values]))
    assert issubclass(BrokenLogits, InferenceError)


def test_minus_infinity_alone_is_no_fault() -> None:
    row = torch.tensor([-math.inf, 0.0, -math.inf])
    assert {choose(row, SamplingParams(temperature=t), 0, 0, ()) for t in (0, 1, 9)} == {1}


def test_only_a_failed_output_is_raised(tiny: Tiny) -> None:
    (output,) = tiny(endless=True).generate([Request(messages=[Message("user", "fox")])])
    output.raise_if_failed()
