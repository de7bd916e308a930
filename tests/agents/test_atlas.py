"""MLAG and LRP against slow loops over transformers' own attentions; traps of the printed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import atlas
from agents.atlas import LrpConfig, MlagConfig
from agents.atlas_calibration import calibrate, find, place, save, thresholds
from inference import InferenceInputError, Message, Request, SamplingParams
from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from inference.watched import Watch, Watched
from tests.inference.tiny import checkpoint

ALL = MlagConfig(1.1, 0.0, window=5)
TEXT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("atlas"), endless=True)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[NativeEngine]:
    engine = NativeEngine.from_config(
        NativeConfig(model=str(folder), dtype="float32", device="cpu")
    )
    yield engine
    engine.close()


def watch(engine: NativeEngine, kept: tuple[int, ...] = (), tokens: int = 12) -> Watched:
    request = Request(prompt=TEXT, sampling=SamplingParams(max_tokens=tokens))
    one = Watch(engine, request, kept, list(atlas.state_weights(2, 2.0)))
    return one.result(engine.generate([one.request])[0])


def truth(
    folder: Path, seen: Watched
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        out = model(torch.tensor([seen.ids]), output_attentions=True, output_hidden_states=True)
    chance = out.logits[0].softmax(-1)
    told = [float(chance[at - 1, seen.ids[at]]) for at in range(seen.start, len(seen.ids))]
    return [one[0] for one in out.attentions], [one[0] for one in out.hidden_states], told


def test_mlag_is_the_formula_over_transformers_attentions(
    engine: NativeEngine, folder: Path
) -> None:
    seen = watch(engine)
    layers, _, told = truth(folder, seen)
    last_row = len(seen.ids) - 1
    checked = 0
    for i in range(seen.start, last_row):
        rows = range(i + 1, min(i + 1 + ALL.window, last_row))
        share = []
        for weights in layers:
            got = [float(sum(weights[:, r, k].sum() for r in rows)) for k in range(1, i + 1)]
            share.append(got[-1] / max(got) if rows else 0.0)
        gradient = abs(share[1] - share[0])  # L = 2: one step, eta = 1
        entropy = []
        for head in layers[-1]:
            all_rows = head[seen.start : last_row]
            entropy.append(float(-(all_rows * all_rows.clamp_min(1e-30).log()).sum(-1).mean()))
        mean = [float(sum(h[r, i] for r in rows)) / max(len(rows), 1) for h in layers[-1]]
        doubt = (1 - told[i - seen.start]) * sum(
            e / sum(entropy) * m for e, m in zip(entropy, mean, strict=True)
        )
        alpha = 0.8 * math.exp(-4 * (i / 256) / 0.85)
        wanted = alpha * gradient * doubt if atlas.is_content(seen.pieces[i]) else 0.0
        assert atlas.mlag(seen, i, ALL) == pytest.approx(wanted, abs=1e-4, rel=1e-2)
        checked += wanted > 0
    assert checked > 0


def test_relevance_is_the_formula_over_transformers_states(
    engine: NativeEngine, folder: Path
) -> None:
    seen = watch(engine)
    layers, states, _ = truth(folder, seen)
    i = seen.start + 4
    psi = [0.5 * (1 - 2 / 3) / (2 / 3), 0.0]  # L = 2, as printed
    delta = np.exp(np.arange(3) / 2.0) / np.exp(np.arange(3) / 2.0).sum()
    mixed = sum(float(delta[at]) * states[at] for at in range(3))
    assert isinstance(mixed, torch.Tensor)
    att = [
        sum(p * float(w[:, i, j].mean()) for p, w in zip(psi, layers, strict=True))
        for j in range(1, i)
    ]
    rep = [float(torch.cosine_similarity(mixed[j], mixed[i], dim=0)) for j in range(1, i)]
    spread = [[(x - min(v)) / (max(v) - min(v)) for x in v] for v in (att, rep)]
    wanted = [0.7 * a + 0.3 * r for a, r in zip(*spread, strict=True)]
    np.testing.assert_allclose(atlas.relevance(seen, i, LrpConfig())[1:], wanted, atol=1e-3)


def test_attention_received_from_earlier_tokens_is_zero_in_a_causal_model(
    engine: NativeEngine, folder: Path
) -> None:
    """Why the printed form never triggers; and rows sum to 1, so their sums say nothing."""
    seen = watch(engine)
    layers, _, _ = truth(folder, seen)
    for weights in layers:
        assert float(weights.triu(1).abs().max()) == 0.0
    np.testing.assert_allclose(seen.attention.sum(-1), 1.0, atol=1e-5)
    i = seen.start + 3
    got = atlas.received(np.asarray(seen.attention, float), seen.start, i, 5)
    assert got.sum(axis=1).std() > 1e-3


@pytest.mark.parametrize("form", ["lookahead", "outgoing"])
def test_a_higher_threshold_or_more_memory_triggers_less(engine: NativeEngine, form: str) -> None:
    seen = watch(engine, tokens=30)
    base = replace(ALL, form=form)  # type: ignore[arg-type]

    def count(config: MlagConfig) -> int:
        at = range(seen.start, len(seen.ids))
        return sum(atlas.mlag(seen, one, config) > config.threshold for one in at)

    values = sorted(atlas.mlag(seen, at, base) for at in range(seen.start, len(seen.ids)))
    middle = values[-len([v for v in values if v > 0]) // 2]
    by_theta = [count(replace(base, threshold=t)) for t in (0.0, middle, values[-1])]
    assert by_theta == sorted(by_theta, reverse=True) and by_theta[0] > by_theta[-1] == 0
    limits = [
        count(replace(base, threshold=middle, memory_limit=m)) for m in (1.0, 0.3, 0.15, 0.05)
    ]
    assert limits == sorted(limits, reverse=True) and limits[0] > limits[-1]


def test_going_back_to_a_token_goes_on_as_before(engine: NativeEngine) -> None:
    whole = watch(engine, tokens=20)
    cut = whole.produced[:7]
    again = watch(engine, cut, tokens=13)
    assert again.ids == whole.ids and again.start == whole.start + 7
    plain = engine.generate([Request(prompt=TEXT, sampling=SamplingParams(max_tokens=20))])[0]
    assert whole.produced == plain.token_ids


def test_thresholds_meet_their_rates_and_belong_to_their_weights(
    engine: NativeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    found = list(zip(draw.random(2000), draw.random(2000), strict=True))
    gate, theta = thresholds(found, 0.05)
    hits = sum(p < gate and m > theta for p, m in found)
    assert hits / 2000 == pytest.approx(0.05, abs=0.002)
    with pytest.raises(InferenceInputError, match="too few"):
        thresholds(found[:5], 0.05)
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path))
    made = calibrate(engine, [TEXT, TEXT[4:], TEXT[10:]], rate=0.2, window=16)
    with pytest.raises(InferenceInputError, match="has no ATLAS thresholds"):
        find("tiny", made.base_digest, "lookahead", 16)
    assert save(made) == place(made.base_digest, "lookahead", 16)
    assert find("tiny", made.base_digest, "lookahead", 16) == made
    with pytest.raises(InferenceInputError, match="or give max_probability and threshold"):
        find("other", "0" * 32, "lookahead", 16)


def test_passages_stand_before_the_question() -> None:
    dialogue = [Message("system", "Be short."), Message("user", "Who?")]
    grounded = atlas.grounded(dialogue, [{"title": "Mill", "text": "It was $5."}])
    assert grounded[0] == dialogue[0]
    assert grounded[1] == Message("user", "Passages:\n- Mill: It was $5.\n\nWho?")
    assert atlas.grounded(dialogue, []) == dialogue
    assert (
        atlas.grounded("Who?", [{"title": "Mill", "text": "x"}]) == "Passages:\n- Mill: x\n\nWho?"
    )
    assert "Harrow Bridge" in atlas.query_prompt(["Harrow", "Bridge"])[0].content


def test_thresholds_of_the_default_model_come_along(default_engine: NativeEngine) -> None:
    digest = default_engine.weights_digest
    found = find("default", digest, "lookahead", 32)
    assert found.base_digest == digest and found.rate == 0.05 and found.tokens >= 500
    assert 0 < found.max_probability < 1 and found.threshold > 0
    with pytest.raises(InferenceInputError, match="ragwright models calibrate default --atlas"):
        find("default", digest, "outgoing", 32)
