"""The benchmark of speculation: its data, its figures, and every row on a tiny model."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference import Request
from inference.engine import NativeConfig
from inference.errors import DrafterInputError, UnknownName
from inference.native.engine import NativeEngine
from inference.speculative import DRAFTERS
from tests.bench import long, speculation
from tests.bench.conftest import Here
from tests.bench.contest import (
    LLAMACPP,
    LOOKUP,
    PLAIN,
    Answered,
    Contest,
    gap,
    lengths,
    prompt_ids,
    slowest,
    slowest_of_all,
    whole,
)
from tests.bench.figures import Figure
from tests.bench.long import LENGTHS, wins_from, write_random
from tests.bench.peers import SCRIPTS, Peer, PeerEnded
from tests.bench.questions import CATEGORIES, DATA, Ask, Missing, Questions, about, token_f1
from tests.bench.speculation import QUICK_ROWS, ROWS, Bench, batches
from tests.inference.tiny import checkpoint

TOKENS = 12
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAKE = """
import itertools


class Llama:
    def __init__(self, *_, **__):
        pass

    def reset(self):
        pass

    def tokenize(self, text, add_bos):
        return {b"seven": [7]}[text]

    def generate(self, ids, **_):
        assert ids[0] == 7
        return itertools.repeat(ids[0])
"""


@pytest.fixture
def bench(here: Here, model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(long, "QUESTIONS", 1)
    with Bench(1, ["prompt_lookup"], model=model, tokens=TOKENS, data=here) as opened:
        yield opened


def named(figures: Sequence[Figure]) -> dict[str, Figure]:
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name: figure for figure in figures}


def test_every_row_gives_its_figures(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = named(bench.run(list(ROWS)))
    for category in (*CATEGORIES, "hotpotqa"):
        for size in (1, 8):
            row = f"{category}_batch{size}"
            own = found[f"{row} prompt_lookup over plain"]
            assert own.peer == PLAIN and own.ratio is not None and own.value is not None
            assert found[f"{row} plain"].value == own.peer_value
            peer = found[f"{row} prompt_lookup over transformers"]
            assert peer.peer == LOOKUP and peer.ratio is not None
            missing = found[f"{row} prompt_lookup over llama.cpp"]
            assert (missing.peer, missing.peer_value, missing.ratio) == (LLAMACPP, None, None)
            accepted = found[f"{row} prompt_lookup accepted_length"]
            assert accepted.value is not None and accepted.value >= 1 and accepted.n == size
            share = found[f"{row} prompt_lookup drafting_share"].value
            assert share is not None and 0 <= share < 1
            assert found[f"{row} prompt_lookup near_ties"].n == size
            assert found[f"{row} prompt_lookup differences_not_ties"].value == 0
    means = [
        found[f"{category}_batch1 prompt_lookup over plain"].ratio for category in CATEGORIES[:8]
    ]
    assert None not in means
    mean = found["mt_bench_batch1 prompt_lookup over plain"].value
    assert mean == pytest.approx(statistics.mean(one for one in means if one is not None))
    worst = [
        one.value
        for name, one in found.items()
        if name.endswith(" prompt_lookup slowest over plain")
    ]
    assert len(worst) == 2 * (len(CATEGORIES) + 1) + 1
    assert found["all prompt_lookup slowest over plain"].value == min(filter(None, worst))
    for kind in ("both", "prompt", "references", "none"):
        assert found[f"retrieved prompt_lookup {kind} accepted_length"].n == 2
    for length in LENGTHS:
        assert f"rapid_{length} rapid decoding over plain" in found
    assert found["rapid_quality full_context"].n == 1
    for mode in ("excerpt_only", "eta_0", "tilted_exact", "paper"):
        assert f"rapid_quality {mode}" in found
    if not torch.cuda.is_available():
        gone = [figure for name, figure in found.items() if name.startswith("rapid_gpu_")]
        assert len(gone) == len(long.GPU_LENGTHS)
        assert all("random-weight 8B-shaped" in one.name and one.value is None for one in gone)
        assert "rapid_gpu: not measured: torch sees no CUDA device" in capsys.readouterr().err


def test_a_whole_row_weighs_answers_by_their_length() -> None:
    long_one, short_one = ((1,) * 10,), ((1,) * 2,)
    own = [Answered(long_one, 1.0), Answered(short_one, 1.0)]
    theirs = [Answered(long_one, 5.0), Answered(short_one, 1.0)]
    found = whole("row", PLAIN, own, theirs)
    assert (found.value, found.peer_value, found.ratio, found.n) == (6.0, 2.0, 3.0, 2)
    assert whole("row", PLAIN, own, theirs[:1]).ratio is None


def test_every_drafter_of_the_table_takes_part(
    here: Here, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bench(1, model=model, tokens=TOKENS, data=here) as bench:
        found = named(bench.run(["rag_batch8"]))
    said = capsys.readouterr().err
    assert set(bench.labels) == DRAFTERS.keys() - {"rapid"}
    for name in bench.labels:
        if f"{name}: not measured: " in said:
            continue
        assert found[f"rag_batch8 {name} differences_not_ties"].value == 0
        assert found[f"rag_batch8 {name} decoding over plain"].ratio is not None


def test_what_was_copied_from_references_is_counted(here: Here, tmp_path: Path) -> None:
    model = str(checkpoint(tmp_path, context=512, endless=True, ascii_only=True))
    with Bench(1, ["prompt_lookup:adaptive=false"], model=model, data=here) as bench:
        one = Ask.of("One fox.")
        [text] = bench.plain.answer([one], 40).texts
        contest = Contest(bench.engine, bench.plain, bench.drafters)
        contest.play([[Ask(one.messages, (text,))]] * 2, 40)
    [copied] = [found for label, found in contest.answers.items() if label != PLAIN]
    assert [each.ids for each in copied] == [each.ids for each in contest.answers[PLAIN]]
    for each in copied:
        assert each.length > 2 and 0 < each.drafting < each.decoding < each.seconds
        assert 0 < each.accepted <= each.drafted
    names = {figure.name for figure in contest.figures("a")}
    assert "a prompt_lookup:adaptive=false over plain" in names
    assert not any("transformers" in name for name in names)


def test_rows_without_their_data_are_left_out_and_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Questions(tmp_path)
    with Bench(1, ["prompt_lookup"], model=model, tokens=2, data=data) as bench:
        assert bench.run(["qa_batch1", "retrieved"]) == []
    said = capsys.readouterr().err
    assert said.count("not measured: there is no") == 2 and "questions.jsonl" in said
    with pytest.raises(Missing):
        data.category("qa", 1)


def test_a_drafter_that_does_not_fit_is_named(
    here: Here, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DrafterInputError("heads of another model")

    monkeypatch.setattr("inference.speculative.prompt_lookup.PromptLookup.open", refuse)
    with Bench(1, ["prompt_lookup:tokens=4"], model=model, tokens=2, data=here) as bench:
        assert bench.drafters == []
    assert "prompt_lookup:tokens=4: not measured: heads of another" in capsys.readouterr().err


def test_names_are_checked_before_anything_is_opened() -> None:
    with pytest.raises(UnknownName, match="did you mean 'rag_batch8'"):
        speculation.run(only=["rag_batch2"])
    with pytest.raises(DrafterInputError, match="did you mean 'prompt_lookup'"):
        speculation.run(only=["rag_batch1"], drafter=["prompt_lokup"])
    assert set(QUICK_ROWS) <= ROWS.keys()


def test_prompts_are_spread_over_a_category_and_fill_the_last_batch(here: Here) -> None:
    asked = [ask.messages[0].content for ask in here.category("qa", 2)]
    assert asked == ["Tell of qa 0.", "Tell of qa 1."]
    three = here.category("qa", 8)
    assert len(three) == 3
    assert batches(three, 2) == [[three[0], three[1]], [three[2], three[0]]]
    assert batches(three[:1], 3) == [[three[0]] * 3]


def test_what_was_retrieved_stands_where_a_reading_says(here: Here) -> None:
    kinds = here.readings(2)
    text = "The fox 0 jumps over dog 1."
    inside = {kind: text in asks[0].messages[0].content for kind, asks in kinds.items()}
    beside = {kind: text in asks[0].references for kind, asks in kinds.items()}
    assert inside == {"both": True, "prompt": True, "references": False, "none": False}
    assert beside == {"both": True, "prompt": False, "references": True, "none": False}


def test_a_long_document_holds_the_answer_and_its_excerpt_keeps_the_order(here: Here) -> None:
    def size(text: str) -> int:
        return len(text.split())

    made = here.long(3, 70, 24, size)
    assert made == here.long(3, 70, 24, size)
    for question in made:
        assert size(question.document) <= 70 and size(question.excerpt) <= 24
        parts = question.excerpt.split("\n\n")
        places = [question.document.index(part) for part in parts]
        assert places == sorted(places) and len(parts) > 1
        assert any(part.rstrip(".").endswith(question.answer) for part in parts)
        ask = about(question)
        assert ask.draft_prompt == about(question, full=False).messages
        assert question.document in ask.messages[0].content
    with pytest.raises(Exception, match="no passage fits into a document of 3"):
        here.long(1, 3, 2, size)


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("The dog.", "dog", 1.0),
        ("a big dog", "dog", 2 / 3),
        ("cat", "dog", 0.0),
        ("", "dog", 0.0),
        ("dog dog", "dog", 2 / 3),
    ],
)
def test_token_f1(answer: str, truth: str, score: float) -> None:
    assert token_f1(answer, truth) == pytest.approx(score)


def test_accepted_length_is_tokens_over_forwards() -> None:
    first = Answered(((1, 2, 3, 4),), 2.0, 1.0, accepted=2)
    second = Answered(((1, 2), (3, 4)), 1.0, accepted=0)
    assert (first.length, first.speed, first.decoded_speed) == (2.0, 2.0, 3.0)
    both = lengths("a", [first, second])
    assert (both.value, both.n) == (8 / 6, 3)


def test_the_slowest_answer_is_that_of_the_worst_ratio() -> None:
    def taking(*seconds: float) -> list[Answered]:
        return [Answered(((1, 2),), one) for one in seconds]

    first = slowest("a lookahead slowest over plain", taking(2, 1), taking(1, 4))
    other = slowest("b lookahead slowest over plain", taking(4), taking(5))
    assert (first.value, first.n, other.value) == (0.5, 2, 1.25)
    (worst,) = slowest_of_all([first, other, lengths("c", taking(1))], "lookahead")
    assert (worst.name, worst.value, worst.n) == ("all lookahead slowest over plain", 0.5, 3)
    assert slowest_of_all([first], "medusa") == []


def test_it_wins_from_where_it_never_loses_again() -> None:
    def ratios(*values: float | None) -> list[Figure]:
        found = []
        for length, value in zip(LENGTHS, values, strict=False):
            name = f"rapid_{length} rapid decoding over plain"
            found.append(Figure(name, 1.0, "tokens/s", ratio=value))
        return found

    assert wins_from(ratios(0.9, 1.2, 0.95, 1.1, 1.3))[0].value == 4096
    assert wins_from(ratios(1.1, 1.2))[0].value == 512
    assert wins_from(ratios(1.1, 0.9))[0].value is None
    assert wins_from(ratios(None)) == []


def test_the_gap_is_that_of_the_logits_where_answers_part(model: str) -> None:
    config = NativeConfig(model=model, dtype="float32", prefix_cache_bytes=0)
    engine = config.open()
    assert isinstance(engine, NativeEngine)
    try:
        prompt = prompt_ids(engine, Ask.of("One fox."))
        found = gap(engine, prompt, [30, 40, 50], [30, 41, 50])
        assert gap(engine, prompt, [30], [30, 41]) == float("inf")
    finally:
        engine.close()
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = network(torch.tensor([[*prompt, 30]])).logits[0, -1]
    assert found == pytest.approx(abs(float(logits[40] - logits[41])), abs=1e-4)


@pytest.mark.default_model
def test_a_model_with_random_weights_has_its_shape_and_answers(tmp_path: Path) -> None:
    write_random(tmp_path, TINY)
    engine = NativeConfig(model=str(tmp_path), dtype="bfloat16").open()
    assert isinstance(engine, NativeEngine)
    try:
        shape = engine._model().config
        assert {name: getattr(shape, name) for name in TINY} == TINY
        sampling = replace(Request(prompt="a").sampling, max_tokens=3)
        [output] = engine.generate([Request(prompt="One fox.", sampling=sampling)])
        assert len(output.token_ids) == 3
    finally:
        engine.close()


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}")
def test_the_data_beside_the_project_has_every_category() -> None:
    data = Here(DATA)
    for name in CATEGORIES:
        [ask] = data.category(name, 1)
        assert ask.messages[0].content
    [question] = data.long(1, 2000, 500, lambda text: len(text.split()))
    assert question.answer and len(question.document) > len(question.excerpt) > 0


def test_llamacpp_reads_texts_and_token_ids(tmp_path: Path) -> None:
    """The peer's program, over a stand-in that repeats the first token of its prompt."""
    (tmp_path / "llama_cpp.py").write_text(FAKE, encoding="utf-8")
    program = [sys.executable, SCRIPTS / "llamacpp_peer.py", "model.gguf", "2"]
    with Peer(program, {"PYTHONPATH": str(tmp_path)}) as peer:
        assert peer.tokens_per_second([[7, 8, 9], [7]], 5) > 0
        assert peer.tokens_per_second(["seven"], 3) > 0
        with pytest.raises(PeerEnded, match="AssertionError"):
            peer.tokens_per_second([[6]], 1)
