"""The benchmark of speculation: limits of answers, and going on behind what is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from inference.errors import InferenceInputError
from tests.bench import long
from tests.bench.conftest import Here
from tests.bench.contest import LOOKUP, PLAIN, Answered, Lookup, Native
from tests.bench.questions import Ask
from tests.bench.speculation import Bench

TOKENS = 12


def test_a_later_start_goes_on_behind_what_is_kept(
    here: Here, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, file = ["rag_batch1", "retrieved", "rapid_512", "rapid_quality"], tmp_path / "kept.jsonl"
    monkeypatch.setattr(long, "QUESTIONS", 1)

    def opened(n: int = 1, tokens: int = TOKENS) -> Bench:
        return Bench(n, ["prompt_lookup"], model=model, tokens=tokens, data=here, resume=file)

    with opened() as bench:
        first = bench.run(rows)
    kept = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {row["key"][0] for row in kept[1:]} == set(rows)
    keys = [row["key"] for row in kept[1:]]
    assert ["rag_batch1", 0, PLAIN] in keys and ["rag_batch1", 0, "prompt_lookup"] in keys
    assert ["rag_batch1", 0, LOOKUP] in keys

    def refuse(contender: Native, asks: Sequence[Ask], tokens: int) -> Answered:
        if tokens == TOKENS or asks[0] != Ask.of("One."):
            raise AssertionError("what is kept was asked again")
        return answer(contender, asks, tokens)

    answer = Native.answer
    with monkeypatch.context() as patched:
        patched.setattr(Native, "answer", refuse)
        patched.setattr(Lookup, "answer", refuse)
        with opened() as bench:
            assert bench.run(rows) == first
    with (
        pytest.raises(InferenceInputError, match="tokens is 12 there and 13 here"),
        opened(tokens=TOKENS + 1) as bench,
    ):
        bench.run(rows)

    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed in its second answer
    with opened() as bench:
        again = bench.run(rows)
    assert [figure.name for figure in again] == [figure.name for figure in first]
    after = file.read_bytes().splitlines(keepends=True)
    assert after[:2] == lines[:2]
    assert sorted(json.loads(line)["key"] for line in after[1:]) == sorted(keys)


def test_rows_have_limits_of_their_own(
    here: Here, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}

    def answer(self: Native, asks: Sequence[Ask], tokens: int) -> Answered:
        asked[current] = max(tokens, asked.get(current, 0))
        return Answered(((1, 2),) * len(asks), 1.0)

    monkeypatch.setattr(Native, "answer", answer)
    monkeypatch.setattr(Lookup, "answer", answer)
    for tokens, limits in ((None, (1024, 1024, 128, 128)), (77, (77,) * 4)):
        names = ("rag_batch1", "hotpotqa_batch1", "retrieved", "rapid_1024")
        with Bench(1, ["prompt_lookup"], model=model, tokens=tokens, data=here) as bench:
            for current in names:
                bench.run([current])
        assert tuple(asked[name] for name in names) == limits
        asked.clear()


def test_a_context_without_room_for_the_answer_is_named(
    here: Here, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bench(1, model=model, tokens=400, data=here) as bench:
        [figure] = [one for one in bench.run(["rapid_512"]) if "decoding" in one.name]
    assert figure.value is None
    said = capsys.readouterr().err
    assert "rapid_512: not measured: answers of 400 tokens leave no room; at most 312 do" in said
