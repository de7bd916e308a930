"""RAPID's drafter: what it reads, what it draws from, and that nothing changes where it says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference import Grammar, Request, SamplingParams
from inference.errors import DrafterInputError
from inference.native.engine import NativeEngine
from inference.native.model import Model
from inference.native.sampling import process
from inference.speculative import build, parse
from inference.speculative.prompt_lookup import Index
from inference.speculative.rapid import Rapid, gain
from tests.inference.chance import chi_square
from tests.inference.talking import CONTEXT, EXCERPT, GREEDY, Talk, greedily, said_by, talk
from tests.inference.tiny import checkpoint, network

SAMPLED = SamplingParams(temperature=0.9, top_k=12)
LOSSY = ["tilted-exact", "paper"]


def loaded(folder: Path, **options: Any) -> Model:
    checkpoint(folder, **options)
    return Model.load(folder, str(folder), "float32", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that never ends by itself."""
    return loaded(tmp_path_factory.mktemp("target"), endless=True)


@pytest.mark.parametrize("gamma", [1, 3, 8])
def test_greedy_output_is_that_of_the_target_alone(model: Model, gamma: int) -> None:
    prompts = [CONTEXT, CONTEXT[3:], [*CONTEXT, *EXCERPT], EXCERPT[1:] * 3]
    talks = [Talk(prompt, prompt[-5:]) for prompt in prompts]
    for one in talk(model, Rapid(gamma=gamma), talks, 24):
        assert one.ids[:24] == greedily(model, one.prompt, 24)
        assert all(len(p.draft.ids) <= gamma for p in one.proposals if p is not None)
    assert sum(one.drafted for one in talks) > sum(one.accepted for one in talks)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("mode", ["lossless", *LOSSY])
def test_with_the_context_as_its_excerpt_everything_is_accepted(
    model: Model, mode: str, sampling: SamplingParams
) -> None:
    """q is p then, so that no tilt has an effect at any eta."""
    drafter = build(
        {"use": "rapid", "mode": mode, "gamma": 5, "eta": 0.0 if mode == "lossless" else 20.0}
    )
    assert isinstance(drafter, Rapid)
    talks = [Talk(CONTEXT, CONTEXT, sampling, seed) for seed in range(6)]
    for one in talk(model, drafter, talks, 30):
        assert one.accepted == one.drafted > 20


def test_sampled_output_keeps_the_targets_distribution(model: Model) -> None:
    """Pairs of tokens over many seeds, against the product of the target's own probabilities."""
    sampling = replace(SAMPLED, top_k=6, temperature=3.0)
    talks = [Talk(draft_prompt=CONTEXT[1:], sampling=sampling, seed=seed) for seed in range(4000)]
    talk(model, Rapid(gamma=2), talks, 2)
    assert 0.1 < sum(one.accepted for one in talks) / sum(one.drafted for one in talks) < 0.9

    def chances(ids: Sequence[int]) -> torch.Tensor:
        return torch.softmax(process(said_by(model.name)(tuple(ids)), sampling, ids), 0)

    first = chances(CONTEXT)
    pairs = {
        (a, b): float(first[a] * second[b])
        for a in first.nonzero().flatten().tolist()
        for second in [chances([*CONTEXT, a])]
        for b in second.nonzero().flatten().tolist()
    }
    places = {pair: at for at, pair in enumerate(pairs)}
    found = np.bincount([places[one.ids[0], one.ids[1]] for one in talks], minlength=len(places))
    statistic, bound = chi_square(found, np.array(list(pairs.values())))
    assert statistic < bound


@pytest.mark.parametrize("mode", LOSSY)
def test_a_lossy_mode_moves_the_output_towards_the_drafter(model: Model, mode: str) -> None:
    """First tokens over many seeds: nearer to what the drafter would say than the target is."""
    sampling = replace(SAMPLED, top_k=None, temperature=2.0)
    talks = [Talk(sampling=sampling, seed=seed) for seed in range(1500)]
    drafter = Rapid(gamma=1, mode=mode, eta=20.0)
    assert not drafter.rule.lossless
    talk(model, drafter, talks, 1)
    tilted = Rapid(gamma=1, mode="tilted-exact", eta=20.0).rule
    logits = process(said_by(model.name)(tuple(CONTEXT)), sampling)
    q = torch.softmax(process(said_by(model.name)(tuple(EXCERPT)), sampling), 0)
    aim = tilted.target(logits, q)  # type: ignore[attr-defined]
    found = np.bincount([one.ids[0] for one in talks], minlength=len(aim))
    statistic, bound = chi_square(found, aim.numpy())
    if mode == "tilted-exact":
        assert statistic < bound
    else:
        assert statistic > bound, "the printed rule does not follow the tilted target"


@pytest.mark.parametrize("mode", ["lossless", "paper"])
def test_rows_are_what_the_drafter_draws_from(model: Model, mode: str) -> None:
    """Whole rows behind the excerpt, with the request's temperature and filters."""
    drafter = Rapid(gamma=4, mode=mode, eta=0.0 if mode == "lossless" else 5.0)
    [one] = talk(model, drafter, [Talk(sampling=SAMPLED, seed=3)], 12)
    assert len(one.proposals) > 1
    done: list[int] = []
    for proposal in one.proposals:
        assert proposal is not None and proposal.drawn is not None
        ids = proposal.draft.ids
        assert proposal.drawn.shape == (len(ids), model.width)
        for at, row in enumerate(proposal.drawn):
            read = (*EXCERPT, *done, *ids[:at])
            wanted = torch.softmax(process(said_by(model.name)(read), SAMPLED), 0)
            torch.testing.assert_close(row, wanted, rtol=1e-3, atol=1e-4)
        taken = next(
            n for n in range(len(ids) + 1) if one.ids[len(done) :][: n + 1] != list(ids[: n + 1])
        )
        done += one.ids[len(done) : len(done) + taken + 1]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_what_is_looked_up_saves_passes_and_changes_no_draft(
    model: Model, sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model repeats nothing it read, so its drafts are planted, every third one wrong."""

    def run(lookup: int) -> list[Talk]:
        talks = [Talk(CONTEXT, EXCERPT[n:], sampling, n) for n in range(3)]
        return talk(model, Rapid(gamma=9, lookup=lookup), talks, 60)

    plain = run(0)
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    for one in plain:
        text = list(one.draft_prompt or ())
        for proposal, said in zip(one.proposals, one.rounds, strict=True):
            drafted = proposal.draft.ids if proposal else ()
            known |= {(*text, *drafted[:at]): drafted[at:] for at in range(len(drafted))}
            text += said
    asked = itertools.count()

    def planted(index: Index, most: int, ahead: Sequence[int], least: int) -> list[int]:
        guess = list(known.get((*index._ids, *ahead), ())[:most])
        if guess and next(asked) % 3 == 0:
            guess[len(guess) // 2] = (guess[len(guess) // 2] + 1) % model.vocabulary
        return guess

    monkeypatch.setattr(Index, "after", planted)
    for lookup in (3, 24):
        found = run(lookup)
        for one, other in zip(plain, found, strict=True):
            assert one.ids == other.ids
            assert [p and p.draft for p in one.proposals] == [
                p and p.draft for p in other.proposals
            ]
            assert other.notes["draft_passes"] < one.notes["draft_passes"]  # type: ignore[operator]


def test_the_drafter_never_reads_the_context(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from inference.native.runner import Runner

    step = Runner.step
    read: list[tuple[int, ...]] = []

    def watched(self: Runner, rows: Any, *rest: Any, **more: Any) -> Any:
        read.extend(tuple(row.ids) for row in rows if row.ids != [0])  # which is a warm-up
        return step(self, rows, *rest, **more)

    monkeypatch.setattr(Runner, "step", watched)
    [one] = talk(model, Rapid(gamma=3), [Talk()], 20)
    assert read
    for ids in read:
        assert ids[: len(EXCERPT)] == tuple(EXCERPT)
        behind = list(ids[len(EXCERPT) :])
        said = [*one.ids, *itertools.chain(*(p.draft.ids for p in one.proposals if p is not None))]
        assert set(behind) <= {*said, *EXCERPT}  # of which it looks up what may come next
    assert "fallback" not in one.notes
    assert one.notes["draft_prompt_tokens"] == len(EXCERPT)


def test_without_a_draft_prompt_the_drafter_reads_the_requests_and_says_so(model: Model) -> None:
    [one] = talk(model, Rapid(gamma=4), [Talk(draft_prompt=None)], 12)
    assert one.accepted == one.drafted
    assert "no draft prompt was given" in str(one.notes["fallback"])
    assert one.notes["draft_prompt_tokens"] == len(CONTEXT)


def test_a_context_shorter_than_the_draft_prompt_is_read_in_its_place(model: Model) -> None:
    [one] = talk(model, Rapid(gamma=4), [Talk(EXCERPT, CONTEXT)], 12)
    assert one.accepted == one.drafted
    assert "longer than the request's" in str(one.notes["fallback"])
    assert one.ids[:12] == greedily(model, EXCERPT, 12)


def test_a_draft_prompt_beyond_the_drafters_context_is_refused(model: Model) -> None:
    proposer = Rapid().open(model)
    with pytest.raises(DrafterInputError, match=r"has 256 tokens.*reads 256; retrieve less"):
        proposer.begin(Talk(draft_prompt=[5] * 256).start)


def test_a_drafter_at_the_end_of_its_context_stops_drafting(model: Model, tmp_path: Path) -> None:
    short = checkpoint(tmp_path, seed=1, context=64, endless=True)
    drafter = Rapid(gamma=4, model=str(short))
    [one] = talk(model, drafter, [Talk(CONTEXT * 5, CONTEXT * 3 + EXCERPT * 2)], 14)
    assert one.proposals[0] is not None and one.proposals[-1] is None
    assert one.notes["fallback"] == "the drafter stopped for want of context"
    assert one.ids[:14] == greedily(model, one.prompt, 14)


@pytest.mark.parametrize("padding", [-8, 24])
def test_another_model_of_the_vocabulary_may_draft_whatever_its_padding(
    model: Model, tmp_path: Path, padding: int
) -> None:
    """Upward speculation: other weights, and logits of another width than the target's."""
    folder = checkpoint(tmp_path, seed=1, endless=True)
    whole = network(str(folder))
    whole.resize_token_embeddings(model.width + padding)
    whole.save_pretrained(folder)
    drafter = Rapid(gamma=3, model=str(folder))
    for sampling in (GREEDY, SAMPLED):
        [one] = talk(model, drafter, [Talk(sampling=sampling)], 16)
        assert one.accepted < one.drafted
        if sampling is GREEDY:
            assert one.ids[:16] == greedily(model, CONTEXT, 16)
        for proposal in one.proposals:
            assert proposal is not None
            if proposal.drawn is not None:
                assert proposal.drawn.shape[1] == model.width
                assert torch.allclose(proposal.drawn.sum(1), torch.ones(()).double())
    assert one.notes["model"] == str(folder)


def test_a_drafter_of_another_vocabulary_is_refused(model: Model, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = checkpoint(tmp_path)
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["entirely"])
    words.save_pretrained(folder)
    with pytest.raises(DrafterInputError, match="has another vocabulary than"):
        Rapid(model=str(folder)).open(model)


def test_a_draft_ends_behind_an_unsure_token(model: Model) -> None:
    """The unsure token itself stays: without it the draft would be no sample of q any more."""
    [one] = talk(model, Rapid(gamma=8, confidence=0.5), [Talk(sampling=SAMPLED, seed=5)], 30)
    shorter = 0
    for proposal in one.proposals:
        assert proposal is not None and proposal.drawn is not None
        chances = [
            float(row[token]) for row, token in zip(proposal.drawn, proposal.draft.ids, strict=True)
        ]
        assert all(chance >= 0.5 for chance in chances[:-1])
        assert len(chances) == 8 or chances[-1] < 0.5
        shorter += len(chances) < 8
    assert shorter


def test_nothing_is_drafted_behind_the_end(tmp_path: Path) -> None:
    model = loaded(tmp_path, seed=3)
    sampling = replace(SAMPLED, top_k=None, temperature=4.0)
    talks = [Talk(sampling=sampling, seed=seed) for seed in range(60)]
    ends = 0
    for one in talk(model, Rapid(gamma=8), talks, 9):
        for proposal in one.proposals:
            assert proposal is not None
            assert not model.stop_ids & set(proposal.draft.ids[:-1])
            ends += proposal.draft.ids[-1] in model.stop_ids
    assert ends


def test_a_seed_drafts_alike_alone_and_among_others(model: Model) -> None:
    talks = [Talk(CONTEXT[at:], EXCERPT[at % 3 :], SAMPLED, at) for at in range(6)]
    alone = [
        talk(model, Rapid(gamma=3), [replace(one, ids=[], proposals=[])], 16)[0] for one in talks
    ]
    for one, lone in zip(talk(model, Rapid(gamma=3), talks, 16), alone, strict=True):
        assert one.ids == lone.ids


def test_notes_hold_what_the_break_even_is_computed_from(model: Model) -> None:
    [one] = talk(model, Rapid(gamma=4), [Talk()], 16)
    assert one.notes["gamma"] == 4
    assert one.notes["draft_rounds"] == len(one.proposals)
    assert one.notes["draft_tokens"] == one.drafted
    for name in ("draft_seconds", "target_seconds"):
        seconds = one.notes[name]
        assert isinstance(seconds, float) and 0 < seconds < 60


def test_break_even() -> None:
    """Three tokens a round: a verification of 2 and four drafts of 0.25 cost as much."""
    assert gain(3, plain=1, verify=2, draft=0.25, length=4) == pytest.approx(1)
    assert gain(3, plain=1, verify=2, draft=0.25, length=4, once=1) < 1
    assert gain(5, plain=1, verify=1, draft=0, length=4) == pytest.approx(5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rapid:gamma=0", "option gamma='0'"),
        ("rapid:gamma=65", "option gamma='65'"),
        ("rapid:eta=5", "eta=5 changes what is generated"),
        ("rapid:mode=paper", "mode 'paper' needs eta over 0"),
        ("rapid:mode=tilted-exact,eta=30", "eta=30 is over 20"),
        ("rapid:mode=paper,eta=51,model=default", "option eta='51'"),
        ("rapid:mode=lossles", "option mode='lossles'"),
        ("rapid:mode=paper,eta=5,tail=code", "option tail='code'"),
        ("rapid:etta=5", "did you mean 'eta'"),
    ],
)
def test_options_that_do_not_fit_are_refused(text: str, message: str) -> None:
    with pytest.raises(DrafterInputError) as error:
        parse(text)
    assert message in str(error.value)


def test_the_rule_says_whether_anything_changes() -> None:
    names = {}
    for text in ("rapid", "rapid:mode=tilted-exact,eta=10", "rapid:mode=paper,eta=40,model=big"):
        rule = parse(text).rule
        names[rule.name] = rule.lossless
    assert names == {"rejection": True, "tilted-exact": False, "rapid-paper": False}
    rule = parse("rapid:mode=paper,eta=10,tail=repo,tail_factor=0.2").rule
    assert rule.notes() == {"eta": 10.0, "tail": "repo", "factor": 0.2}


TEXTS = ["The quick brown fox jumps over the lazy dog", "A model reads tokens", "naïve café"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grammar", [None, Grammar.regex("[a-f ]{24}")], ids=["free", "grammar"])
def test_in_the_engine_greedy_output_is_that_of_plain_decoding(
    tiny: Callable[..., NativeEngine], batch: int, grammar: Grammar | None
) -> None:
    """All of a batch draft side by side, from other prompts than they answer."""
    engine = tiny("llama", endless=True)
    plain = [
        Request(text, sampling=SamplingParams(max_tokens=24), grammar=grammar) for text in TEXTS
    ]
    drafter = Rapid(gamma=4, adaptive=False)
    drafted = [
        replace(one, id=f"{one.id}-drafted", drafter=drafter, draft_prompt=(one.prompt or "")[4:])
        for one in plain
    ]
    wanted = [output.token_ids for output in engine.generate(plain)]
    for at in range(0, len(drafted), batch):
        outputs = engine.generate(drafted[at : at + batch])
        for output, ids in zip(outputs, wanted[at:], strict=False):
            assert output.token_ids == ids
            assert output.stats.drafted > output.stats.accepted
            notes = output.notes["drafter"]
            assert (notes["rule"], notes["lossless"]) == ("rejection", True)
            assert "fallback" not in notes


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_the_engine_the_context_as_draft_prompt_is_all_accepted(
    tiny: Callable[..., NativeEngine], temperature: float
) -> None:
    engine = tiny("llama", endless=True)
    sampling = SamplingParams(max_tokens=31, temperature=temperature, seed=7)
    drafter = Rapid(gamma=5, mode="paper", eta=20.0, adaptive=False)
    [output] = engine.generate(
        [Request(TEXTS[0], sampling=sampling, drafter=drafter, draft_prompt=TEXTS[0])]
    )
    assert output.stats.accepted == output.stats.drafted >= 20
    assert output.stats.forwards < 10
    notes = output.notes["drafter"]
    assert (notes["rule"], notes["lossless"], notes["eta"]) == ("rapid-paper", False, 20.0)


@pytest.mark.default_model
def test_greedy_output_of_the_default_model_is_unchanged() -> None:
    from inference.models import resolve

    model = Model.load(resolve("default"), "default", "float32", "cpu")
    text = "The Orrin Mill was founded by Petra Lund in 1803. She was born in Vessmark. "
    ask = "Question: Who founded the Orrin Mill? Answer: The Orrin Mill was"
    noise = "Lake Dorn is fed by three streams and freezes every winter. " * 4
    prompt, draft = (model.tokenizer.encode(one + ask) for one in (noise + text, text))
    [one] = talk(model, Rapid(gamma=4), [Talk(prompt, draft)], 20)
    assert one.ids[:20] == greedily(model, prompt, 20)
    assert one.accepted > 5
