"""Medusa: heads learn the token they stand for, the tree is the best one, outputs stay."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from inference import FinishReason, Request
from inference.errors import DrafterInputError
from inference.models.manifest import sha256
from inference.native.engine import NativeEngine
from inference.native.fingerprint import fingerprint
from inference.native.model import Model
from inference.requests import SamplingParams
from inference.speculative import build, parse, spell
from inference.speculative.base import Turn
from inference.speculative.choices import Choice, expected, grow, read_choices, spell_choices
from inference.speculative.medusa import SHIPPED, Medusa
from inference.speculative.medusa_guess import tree
from inference.speculative.medusa_heads import CARD, WEIGHTS, MedusaHeads
from inference.speculative.verify import Match, Typical
from tests.inference.test_batching import opened, requests_for, tokens
from tests.inference.tiny import checkpoint

Tiny = Callable[..., NativeEngine]
CHOICES = read_choices("0 1 0.0 0.1 2 0.0.0 1.0")


def heads_of(engine: NativeEngine, folder: Path, scale: float = 0.1, **changed: Any) -> Path:
    """Random heads (zero heads with `scale` 0) for the model of an engine, in `folder`."""
    model = engine._model()
    width = int(model.config.hidden_size)
    draw = torch.Generator().manual_seed(1)
    facts: dict[str, Any] = {
        "blocks": torch.randn(3, width, width, generator=draw) * scale,
        "biases": torch.zeros(3, width),
        "tokens": None,
        "base": model.weights_digest,
        "model": model.name,
        "choices": CHOICES,
    }
    MedusaHeads(**{**facts, **changed}).save(folder)
    return carded(folder)


def carded(folder: Path) -> Path:
    """The folder, with a card that states its file."""
    files = {WEIGHTS: sha256(folder / WEIGHTS)}
    (folder / CARD).write_text(json.dumps({"files": files}), encoding="utf-8")
    return folder


def turn(hidden: torch.Tensor, room: int = 64, depth: int = 64) -> Turn:
    return Turn(None, [5, 6], 2, 0, (), room, depth, hidden)


# The tree.


PATHS = st.lists(st.integers(0, 2), max_size=3).map(tuple)


@given(st.dictionaries(PATHS, st.integers(1, 9), min_size=1), st.integers(1, 6))
def test_the_tree_is_the_best_of_its_size(paths: dict[Choice, int], nodes: int) -> None:
    """Against all trees of that size, each walked along every path."""
    best = grow(paths, nodes)
    steps = sum(paths.values())
    known = {path[:end] for path in paths for end in range(1, len(path) + 1)}
    if not known:
        assert best == ()
        return
    assert read_choices(spell_choices(best)) == best

    def accepted(tree: Collection[Choice]) -> float:
        walked = {
            path: sum(path[:end] in tree for end in range(1, len(path) + 1)) for path in paths
        }
        return sum(walked[path] * count for path, count in paths.items()) / steps

    trees = [
        chosen
        for chosen in itertools.combinations(sorted(known)[:12], min(nodes, len(known), 12))
        if all(one[:-1] in chosen for one in chosen if len(one) > 1)
    ]
    assert expected(paths, best) == pytest.approx(accepted(best))
    assert all(accepted(one) <= accepted(best) + 1e-9 for one in trees)


@pytest.mark.parametrize("text", ["", "0 0", "1.0 1", "0.0", "0 0.x", "10", "0 -1"])
def test_choices_that_are_no_tree(text: str) -> None:
    with pytest.raises(DrafterInputError):
        read_choices(text)


# What is proposed.


def test_heads_of_zeros_guess_what_the_model_itself_would(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny()
    model = engine._model()
    folder = heads_of(engine, tmp_path, 0.0)
    proposer = Medusa(heads=str(folder), nodes=len(CHOICES)).open(model)
    hidden = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    assert model.lean is not None
    best = model.lean.readout()(hidden).topk(3, dim=1).indices.tolist()
    for first, proposal in zip(best, proposer.propose([turn(h) for h in hidden]), strict=True):
        assert proposal is not None
        found = [
            tuple(proposal.draft.ids[at] for at in line) for line in proposal.draft.ancestors()
        ]
        assert found == [tuple(first[rank] for rank in choice) for choice in CHOICES]


def test_a_head_reads_its_own_block_and_the_models_matrix(tiny: Tiny, tmp_path: Path) -> None:
    """Against the formula, spelt out; guesses are among the tokens of the heads."""
    engine = tiny()
    model = engine._model()
    some = torch.tensor([7, 30, 31, 90, 200, 319])
    folder = heads_of(engine, tmp_path, tokens=some, biases=torch.rand(3, 64))
    proposer = Medusa(heads=str(folder), choices="0 0.0 0.0.0").open(model)
    stored = MedusaHeads.load(folder)
    hidden = torch.randn(64, generator=torch.Generator().manual_seed(4))
    matrix = load_file(Path(model.name) / "model.safetensors")["lm_head.weight"].float()
    (proposal,) = proposer.propose([turn(hidden)])
    assert proposal is not None
    for head, token in enumerate(proposal.draft.ids):
        x = stored.blocks[head].float() @ hidden + stored.biases[head].float()
        state = hidden + x / (1 + torch.exp(-x))
        assert token == max(some.tolist(), key=lambda t: float(matrix[t] @ state))


def chained(
    engine: NativeEngine, folder: Path, again: int = 2, scale: float = 0.1, **changed: Any
) -> Path:
    """Random heads of a chain, two of them, for the model of an engine."""
    draw = torch.Generator().manual_seed(8)
    blocks, drawn = torch.randn(2, 2, 64, 64, generator=draw) * scale
    biases = torch.randn(2, 64, generator=draw) * scale
    facts = {"blocks": blocks, "biases": biases, "drawn": drawn, "again": again, **changed}
    return heads_of(engine, folder, **facts)


@given(st.integers(1, 8), st.integers(1, 4))
@settings(max_examples=20)
def test_drafts_keep_to_room_and_depth(room: int, depth: int) -> None:
    paths = _paths(CHOICES, room, depth)
    kept = [one for one in CHOICES if len(one) <= depth][:room]
    assert paths == [tuple(10 * at + rank for at, rank in enumerate(one)) for one in kept]


def _paths(choices: Sequence[tuple[int, ...]], room: int, depth: int) -> list[tuple[int, ...]]:
    """Paths of a draft where guess r of head k is token 10k + r."""
    guesses = [[10 * head + rank for rank in range(10)] for head in range(3)]
    proposal = tree(choices, guesses, room, depth)
    assert proposal is not None
    return [tuple(proposal.draft.ids[at] for at in line) for line in proposal.draft.ancestors()]


# What does not fit.


def test_heads_of_other_models_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    engine, other = tiny(), tiny("qwen2")
    folder = heads_of(engine, tmp_path / "own")
    with pytest.raises(DrafterInputError, match="weights are not those of"):
        Medusa(heads=str(folder)).open(other._model())
    narrow = heads_of(
        engine, tmp_path / "narrow", blocks=torch.zeros(3, 8, 8), biases=torch.zeros(3, 8)
    )
    with pytest.raises(DrafterInputError, match=r"states of 8 numbers and those of .* have 64"):
        Medusa(heads=str(narrow)).open(engine._model())


def test_heads_fit_whatever_type_the_model_runs_in(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    with opened(folder) as wide:
        heads = heads_of(wide, tmp_path / "heads")
        model = wide._model()
        half = fingerprint(folder, model.name, model.config, torch.bfloat16)
        assert model.weights_digest != half
    narrow = Model.load(folder, str(folder), "bfloat16", "cpu")
    drafter = Medusa(heads=str(heads), nodes=len(CHOICES))
    (proposal,) = drafter.open(narrow).propose([turn(torch.ones(64).bfloat16())])
    assert proposal is not None
    assert len(proposal.draft.ids) == len(CHOICES)


def test_choices_deeper_than_the_heads_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = heads_of(tiny(), tmp_path)
    with pytest.raises(DrafterInputError, match=r"'0\.0\.0\.0' is 4 deep and .* guess 3 tokens"):
        Medusa(heads=str(folder), choices="0 0.0 0.0.0 0.0.0.0").open(tiny()._model())
    short = heads_of(
        tiny(), tmp_path / "short", blocks=torch.zeros(2, 64, 64), biases=torch.zeros(2, 64)
    )
    with pytest.raises(DrafterInputError, match="guess 2 tokens and their choices reach 3"):
        Medusa(heads=str(short)).open(tiny()._model())


def test_damaged_and_missing_heads(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()._model()
    with pytest.raises(DrafterInputError, match="no heads 'nowhere'"):
        Medusa(heads="nowhere").open(model)
    folder = heads_of(tiny(), tmp_path)
    heads_of(tiny(), tmp_path / "other", scale=0.2)
    (folder / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(DrafterInputError, match="are not those of their card"):
        Medusa(heads=str(folder)).open(model)
    (folder / WEIGHTS).write_bytes(b"not tensors")
    with pytest.raises(DrafterInputError, match="cannot be read"):
        Medusa(heads=str(folder)).open(model)


def test_only_the_lean_forward_pass_shows_states(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    with (
        opened(folder, forward="transformers") as engine,
        pytest.raises(DrafterInputError, match="forward 'auto' or 'lean'"),
    ):
        Medusa().open(engine._model())


# Options and rules.


def test_options_are_read_and_spelt() -> None:
    drafter = parse("medusa:nodes=4,accept=typical,epsilon=0.2,choices=0 0.0")
    assert drafter == build(
        {"use": "medusa", "nodes": 4, "accept": "typical", "epsilon": 0.2, "choices": "0 0.0"}
    )
    assert parse(spell(drafter)) == drafter
    assert parse(spell(Medusa())) == Medusa()
    assert drafter.rule == Typical(epsilon=0.2, delta=0.3)
    assert not drafter.rule.lossless
    assert drafter.opens == ()
    assert Medusa(heads="some/folder").opens == ("heads",)
    assert Medusa(accept="typical").rule == Typical(0.09, 0.3)
    assert Medusa().rule == Match()


@pytest.mark.parametrize(
    "text",
    [
        "medusa:epsilon=0.1",
        "medusa:nodes=0",
        "medusa:nodes=65",
        "medusa:choices=1.0",
        "medusa:copies=65",
        "medusa:copies=4,context=false",
        "medusa:copies=4,choices=0 1",
    ],
)
def test_options_that_cannot_be(text: str) -> None:
    with pytest.raises(DrafterInputError):
        parse(text)


# At work in the engine.


def with_drafter(requests: Sequence[Request], drafter: Medusa) -> list[Request]:
    return [replace(one, drafter=drafter) for one in requests]


@pytest.mark.parametrize("scale", [0.0, 0.1])
@pytest.mark.parametrize("choices", [None, "0 0.0 0.0.0"])
@pytest.mark.parametrize("chain", [False, True], ids=["parallel", "chain"])
def test_outputs_are_those_of_plain_decoding(
    tiny: Tiny, tmp_path: Path, scale: float, choices: str | None, chain: bool
) -> None:
    """Greedy and with a seed, in a tree and in one line, with heads of zeros and random ones."""
    engine = tiny()
    heads = chained(engine, tmp_path, scale=scale) if chain else heads_of(engine, tmp_path, scale)
    drafter = Medusa(heads=str(heads), choices=choices, adaptive=False)
    plainly = requests_for(5, 12)
    seeded = [
        replace(one, sampling=replace(one.sampling, temperature=0.8, seed=at))
        for at, one in enumerate(plainly)
    ]
    for asked in (plainly, seeded):
        plain = engine.generate(asked)
        found = engine.generate(with_drafter(asked, drafter))
        assert tokens(found) == tokens(plain)
        assert sum(one.stats.drafted for one in found) > 0
        assert all(one.stats.accepted <= one.stats.drafted for one in found)
        assert all(one.notes["drafter"]["lossless"] for one in found)


def test_typical_acceptance_says_that_it_is_lossy(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny()
    drafter = Medusa(heads=str(heads_of(engine, tmp_path)), accept="typical", adaptive=False)
    sampling = SamplingParams(max_tokens=20, temperature=0.8, seed=7)
    (sampled,) = engine.generate(
        with_drafter([Request(prompt="A fox", sampling=sampling)], drafter)
    )
    notes = sampled.notes["drafter"]
    assert (notes["name"], notes["rule"], notes["lossless"]) == ("medusa", "typical", False)
    greedy = requests_for(6, 4)
    assert tokens(engine.generate(with_drafter(greedy, drafter))) == tokens(engine.generate(greedy))


# The heads that come along.


def test_shipped_heads_are_small_and_better_than_counting() -> None:
    folder = SHIPPED / "medusa-default"
    heads = MedusaHeads.load(folder)
    assert (folder / WEIGHTS).stat().st_size <= 5_000_000
    scores = json.loads((folder / CARD).read_text(encoding="utf-8"))["scores"]
    right = scores["right_within"]
    assert len(right["heads"]) == heads.depth
    assert right["heads"][0][0] > right["bigram"][0][0] > 0
    assert right["heads"][0][0] > right["unigram"][0][0]


@pytest.mark.default_model
def test_shipped_heads_speak_for_the_default_model(default_engine: NativeEngine) -> None:
    asked = [
        Request(prompt=text, sampling=SamplingParams(max_tokens=40))
        for text in ("The three states of water are", "def add(a, b):\n")
    ]
    plain = default_engine.generate(asked)
    found = default_engine.generate(with_drafter(asked, Medusa(adaptive=False)))
    assert tokens(found) == tokens(plain)
    assert {one.finish_reason for one in found} <= {FinishReason.LENGTH, FinishReason.STOP}
    assert sum(one.stats.accepted for one in found) > 8
