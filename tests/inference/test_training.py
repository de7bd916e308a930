"""Training: right gradients, what was learned, and nothing lost to a kill."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import get_scheduler

from inference import InferenceError, InferenceInputError
from inference.adapters.lora import Adapter
from inference.adapters.shape import Shape
from inference.errors import AdapterInputError
from inference.models.manifest import sha256
from inference.training.base import Base, open_base, twin
from inference.training.examples import IGNORED, Example, batched, digest
from inference.training.heads import final_hidden, load_head, save_head
from inference.training.loop import Plan, train
from inference.training.lora import LoraOptions, causal_loss, train_lora, with_lora
from tests.house.source import ROOT
from tests.inference.hooked import carrying
from tests.inference.tiny import CORPUS, checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return open_base(str(folder))


def encoded(base: Base, texts: Sequence[str] = CORPUS) -> list[Example]:
    return [Example.whole(base.tokenizer.encode(text)) for text in texts]


def fingerprint(network: Any) -> str:
    """Digest of all weights."""
    state = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        state.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def keep_float64(network: Any) -> None:
    """Put torch's norms in place of transformers', which compute in float32."""
    for path, module in list(network.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(64, eps=module.variance_epsilon, dtype=torch.float64)
            norm.load_state_dict(module.state_dict())
            network.set_submodule(path, norm)


def test_gradients_equal_finite_differences(folder: Path) -> None:
    wide = open_base(str(folder), "float64")
    keep_float64(wide.network)
    model = with_lora(wide.network, LoraOptions(rank=2, targets=("q_proj", "down_proj")))
    draw = torch.Generator().manual_seed(0)
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in weights.values():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / 10)
    examples = [Example.continuation(range(5, 9), range(9, 20)), Example.whole([4, 9, 6])]
    loss = causal_loss(model)
    loss(examples)[0].backward()
    step = 1e-6
    for name, parameter in weights.items():
        entry = int(torch.randint(parameter.numel(), (1,), generator=draw))
        flat = parameter.data.view(-1)
        with torch.no_grad():
            values = []
            for move in (step, -2 * step):
                flat[entry] += move
                values.append(loss(examples)[0].item())
            flat[entry] += step
        difference = (values[0] - values[1]) / (2 * step)
        assert parameter.grad is not None
        assert parameter.grad.view(-1)[entry].item() == pytest.approx(
            difference, rel=1e-5, abs=1e-7
        ), name


def test_the_loss_counts_labelled_tokens_whatever_the_padding(base: Base) -> None:
    long, short = Example.whole(range(4, 30)), Example.continuation(range(9, 19), [7, 8])
    loss = causal_loss(base.network)
    with torch.no_grad():
        together, terms = loss([short, long])
        logits = base.network(torch.tensor([short.ids])).logits[0].log_softmax(-1)
        alone = -(logits[9, 7] + logits[10, 8]) + loss([long])[0]
    assert terms == 2 + 25
    torch.testing.assert_close(together, alone)


def test_a_sentence_is_learned_by_heart(base: Base, tmp_path: Path) -> None:
    before = fingerprint(base.network)
    ids = base.tokenizer.encode(CORPUS[0])
    plan = Plan(steps=80, lr=2e-2, schedule="linear", warmup=4)
    out = tmp_path / "fox"
    card = train_lora(base, [Example.whole(ids)], plan, out, recipe="by heart")
    assert card.losses[0] > 2 and card.losses[-1] < 0.05
    assert {path.name for path in out.iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "card.json")
    }
    assert fingerprint(base.network) == before
    assert not any("lora" in name for name, _ in base.network.named_modules())

    network = copy.deepcopy(base.network)
    adapter = Adapter.from_peft(out, Shape.of(network))
    with torch.no_grad():
        plain = network(torch.tensor([ids])).logits
        with carrying(network, adapter):
            ours = network(torch.tensor([ids])).logits
            said = network.generate(
                torch.tensor([ids[:1]]), max_new_tokens=len(ids) - 1, do_sample=False
            )
        assert said[0].tolist() == ids
        assert torch.equal(network(torch.tensor([ids])).logits, plain)
        theirs = PeftModel.from_pretrained(network, out)(torch.tensor([ids])).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)

    stated = json.loads((out / "card.json").read_text())
    assert stated["files"] == {
        "adapter_model.safetensors": sha256(out / "adapter_model.safetensors")
    }
    assert stated["data"] == digest([Example.whole(ids)]) and stated["plan"]["seed"] == 0
    assert stated["base_files"] == base.files and len(stated["losses"]) == 80
    assert stated["tokens"] == 80 * (len(ids) - 1)


KILLED = """
import os, signal, sys
from pathlib import Path
import inference.training.lora as lora
from inference.training.base import open_base
from tests.inference.test_training import DROPPING, LONG, encoded

real, calls = lora.causal_loss, []
def causal_loss(model):
    loss = real(model)
    def counting(examples):
        calls.append(1)
        if len(calls) == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(examples)
    return counting
lora.causal_loss = causal_loss
base = open_base(sys.argv[1])
lora.train_lora(base, encoded(base), LONG, Path(sys.argv[2]), recipe="r", options=DROPPING)
"""
LONG = Plan(steps=8, batch=1, accumulate=2, lr=1e-3, warmup=2, checkpoint_every=2, seed=5)
DROPPING = LoraOptions(rank=2, dropout=0.2, targets=("q_proj", "up_proj"))


def test_a_killed_run_goes_on_bit_for_bit(base: Base, folder: Path, tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(cut)], cwd=ROOT, capture_output=True
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert [path.name for path in (cut / ".checkpoints").iterdir()] == ["step-00000004"]
    with pytest.raises(InferenceInputError, match="another plan"):
        train_lora(base, encoded(base), replace(LONG, lr=1.0), cut, recipe="r", options=DROPPING)
    with pytest.raises(InferenceInputError, match="another data"):
        train_lora(base, encoded(base)[:2], LONG, cut, recipe="r", options=DROPPING)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    cards = [
        train_lora(base, encoded(base), LONG, out, recipe="r", options=DROPPING)
        for out in (cut, whole)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert cards[0] == cards[1]
    assert cards[0].files == {
        "adapter_model.safetensors": sha256(whole / "adapter_model.safetensors")
    }


class Line:
    """Least squares, the smallest thing to train."""

    examples = [1.0, 2.0, 3.0, 4.0]

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.module.weight.fill_(1.0)

    def loss(self, xs: Sequence[float]) -> tuple[torch.Tensor, int]:
        x = torch.tensor(xs)[:, None]
        return (self.module(x) - 3 * x).square().sum(), len(xs)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    line, plan = Line(), Plan(steps=4, checkpoint_every=1)
    train(line.module, line.examples, line.loss, plan, data="d", folder=tmp_path)
    [state] = tmp_path.iterdir()
    again = Line()
    done = train(again.module, again.examples, again.loss, plan, data="d", folder=tmp_path)
    assert done.steps == len(done.losses) == 4
    assert torch.equal(again.module.weight, line.module.weight)
    with pytest.raises(InferenceInputError, match="another module"):
        train(torch.nn.Linear(2, 2), [1.0], line.loss, plan, data="d", folder=tmp_path)
    weights = state / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InferenceInputError, match=r"damaged weights\.safetensors; delete it"):
        train(line.module, line.examples, line.loss, plan, data="d", folder=tmp_path)
    (state / "state.json").write_text("{")
    with pytest.raises(InferenceInputError, match="cannot be read"):
        train(line.module, line.examples, line.loss, plan, data="d", folder=tmp_path)


def test_epochs_differ() -> None:
    plan = Plan(steps=2, batch=12)
    assert plan.chosen(0, 12) != plan.chosen(1, 12)
    assert plan.chosen(0, 12) == replace(plan, steps=9).chosen(0, 12)
    assert plan.chosen(0, 12) != replace(plan, seed=1).chosen(0, 12)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_add_up_to_the_batch(base: Base, accumulate: int) -> None:
    """However unequal the lengths of the examples are."""
    examples = [Example.whole(range(4, 6 + 7 * n)) for n in range(4)]
    whole = Plan(steps=2, batch=4, lr=1e-3)
    split = replace(whole, batch=4 // accumulate, accumulate=accumulate)
    after = []
    for plan in (whole, split):
        model = with_lora(base.network, LoraOptions(rank=2))
        progress = train(model, examples, causal_loss(model), plan, data="d")
        after.append((progress.losses, [p for p in model.parameters() if p.requires_grad]))
    assert after[0][0] == pytest.approx(after[1][0], rel=1e-5)
    for left, right in zip(after[0][1], after[1][1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rates_are_those_of_transformers_but_for_the_first_warmup_step(schedule: str) -> None:
    plan = Plan(steps=20, lr=0.5, schedule=schedule, warmup=4)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=plan.lr)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    rates = []
    for _ in range(20):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert [plan.rate(step) for step in range(4, 20)] == pytest.approx(rates[4:])
    assert [plan.rate(step) for step in range(4)] == pytest.approx([*rates[1:4], 0.5])


@settings(max_examples=50)
@given(
    examples=st.integers(1, 12),
    batch=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_epoch_sees_every_example_once(
    examples: int, batch: int, accumulate: int, seed: int
) -> None:
    plan = Plan(steps=9, batch=batch, accumulate=accumulate, seed=seed)
    order = [index for step in range(9) for index in plan.chosen(step, examples)]
    for start in range(0, len(order) - examples + 1, examples):
        assert sorted(order[start : start + examples]) == list(range(examples))


@pytest.mark.parametrize(("clip", "norm"), [(None, 30.0), (2.0, 2.0)])
def test_a_step_follows_the_mean_gradient_clipped(clip: float | None, norm: float) -> None:
    """AdamW's first step is lr g / (|g| + eps); the mean of 2 (1 - 3) x^2 is -30."""
    line = Line()
    plan = Plan(steps=1, batch=2, accumulate=2, lr=0.1, clip=clip, eps=1.0, schedule="constant")
    progress = train(line.module, line.examples, line.loss, plan, data="d")
    assert line.module.weight.item() == pytest.approx(1 + 0.1 * norm / (norm + 1), rel=1e-5)
    assert progress.losses == [pytest.approx(30.0)] and progress.terms == 4


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step() -> None:
    line = Line()

    def loss(xs: Sequence[float]) -> tuple[torch.Tensor, int]:
        total, terms = line.loss(xs)
        return total / 0, terms

    with pytest.raises(InferenceError, match="training step 1: loss inf"):
        train(line.module, line.examples, loss, Plan(steps=3), data="d")
    assert line.module.weight.item() == 1.0


def test_bfloat16_trains_float32_factors(folder: Path, tmp_path: Path) -> None:
    half = open_base(str(folder), "bfloat16")
    plan = Plan(steps=15, lr=1e-2, schedule="constant")
    card = train_lora(half, encoded(half)[:1], plan, tmp_path / "a", recipe="half")
    assert card.dtype == "bfloat16" and card.losses[-1] < card.losses[0] / 2
    wide = replace(Shape.of(half.network), dtype=torch.float32)
    adapter = Adapter.from_peft(tmp_path / "a", wide)
    factor = adapter.pairs[0, "q_proj"].b
    assert not torch.equal(factor, factor.bfloat16().float())  # not rounded to half


def test_a_head_learns_over_final_hidden_states(base: Base, tmp_path: Path) -> None:
    """A head for the token after the next, as Medusa's: loss falls below that of guessing."""
    examples = encoded(base)
    batch = batched(examples, torch.device("cpu"))
    hidden = final_hidden(base.network, batch)
    with torch.no_grad():
        logits = base.network(input_ids=batch.ids, attention_mask=batch.mask).logits
        torch.testing.assert_close(base.network.lm_head(hidden), logits)
    before = fingerprint(base.network)
    head = torch.nn.Linear(64, 320)

    def loss(chosen: Sequence[Example]) -> tuple[torch.Tensor, int]:
        part = batched(chosen, torch.device("cpu"))
        ahead = head(final_hidden(base.network, part))[:, :-2].flatten(0, 1)
        labels = part.labels[:, 2:].flatten()
        total = torch.nn.functional.cross_entropy(
            ahead, labels, ignore_index=IGNORED, reduction="sum"
        )
        return total, int((labels != IGNORED).sum())

    progress = train(head, examples, loss, Plan(steps=60, batch=3, lr=1e-2), data="d")
    assert progress.losses[-1] < 1 < math.log(320) / 2 < progress.losses[0]
    assert fingerprint(base.network) == before
    save_head(head, tmp_path)
    other = torch.nn.Linear(64, 320)
    load_head(other, tmp_path)
    assert torch.equal(other.weight, head.weight)
    with pytest.raises(InferenceInputError, match="train it again"):
        load_head(torch.nn.Linear(63, 320), tmp_path)


def test_a_twin_shares_weights_and_nothing_else(base: Base) -> None:
    other = twin(base.network)
    pairs = zip(base.network.parameters(), other.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert not {id(m) for m in base.network.modules()} & {id(m) for m in other.modules()}
    assert other.config is not base.network.config
    assert not any(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 1, "lr": float("nan")}, "lr=nan"),
        ({"steps": 3, "warmup": 3}, "warmup=3"),
        ({"steps": 1, "clip": 0.0}, r"clip=0\.0"),
        ({"steps": 1, "schedule": "cosin"}, "schedule='cosin'"),
    ],
)
def test_plans_that_cannot_be_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InferenceInputError, match=named):
        Plan(**options)


def test_what_cannot_be_trained_is_refused(base: Base) -> None:
    with pytest.raises(InferenceInputError, match="none to learn"):
        Example.whole([7])
    with pytest.raises(InferenceInputError, match="2 ids and 1 labels"):
        Example((1, 2), (1,))
    loss = causal_loss(base.network)
    with pytest.raises(InferenceInputError, match="context 256"):
        loss([Example.whole(range(257))])
    with pytest.raises(InferenceInputError, match="0 to 319"):
        loss([Example.whole([1, 320])])
    with pytest.raises(InferenceInputError, match="nothing to train"):
        train(base.network, [1], lambda _: (torch.zeros(()), 1), Plan(steps=1), data="d")
    with pytest.raises(AdapterInputError, match="did you mean 'q_proj'"):
        with_lora(base.network, LoraOptions(targets=("q_prj",)))
    with pytest.raises(AdapterInputError, match="rank=0"):
        with_lora(base.network, LoraOptions(rank=0))
