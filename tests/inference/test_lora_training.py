"""Training adapters: where it begins, and that padding changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inference import InferenceInputError
from inference.adapters.folder import WEIGHTS
from inference.errors import AdapterInputError
from inference.models.manifest import sha256
from inference.training.base import Base, open_base
from inference.training.card import Card
from inference.training.examples import IGNORED, Example, digest
from inference.training.loop import Plan, train
from inference.training.lora import LoraOptions, causal_loss, train_lora, with_lora
from tests.inference.tiny import CORPUS, checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(str(checkpoint(tmp_path_factory.mktemp("base"))))


def test_an_adapter_goes_on_from_another(base: Base, tmp_path: Path) -> None:
    """Where it learns nothing it is the other, and its first loss is that of the other."""

    def trained(name: str, lr: float = 1e-2, start: str | None = None, rank: int = 2) -> Card:
        return train_lora(
            base,
            [Example.whole(base.tokenizer.encode(CORPUS[0]))],
            Plan(steps=3, lr=lr, schedule="constant"),
            tmp_path / name,
            recipe="x",
            options=LoraOptions(rank=rank),
            start=tmp_path / start if start else None,
        )

    trained("first")
    still = trained("still", lr=1e-30, start="first")
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("still", "first"))
    torch.testing.assert_close(ours, theirs)
    assert still.options["start"] == sha256(tmp_path / "first" / WEIGHTS)
    assert trained("on", start="first").losses[0] == still.losses[0] != trained("x").losses[0]
    with pytest.raises(AdapterInputError, match="not of rank 4"):
        trained("wider", start="first", rank=4)
    with pytest.raises(AdapterInputError, match="nowhere"):
        trained("none", start="nowhere")


def test_padding_changes_no_loss(base: Base) -> None:
    """Beside transformers' own loss of each example, alone and not padded."""
    model = with_lora(base.network, LoraOptions(rank=2))
    examples = [Example.continuation(range(5, 9), range(9, 20)), Example.whole([4, 9, 6])]
    padded, terms = causal_loss(model)(examples)
    plain, same = torch.zeros(()), 0
    for one in examples:
        ids, labels = torch.tensor([one.ids]), torch.tensor([one.labels])
        learned = int((labels[:, 1:] != IGNORED).sum())
        plain = plain + model(input_ids=ids, labels=labels).loss * learned
        same += learned
    assert terms == same
    torch.testing.assert_close(padded, plain)


def test_a_checkpoint_that_began_elsewhere_is_refused(base: Base, tmp_path: Path) -> None:
    examples, plan = [Example.whole([4, 9, 6])], Plan(steps=2)
    options = LoraOptions(rank=2)
    train_lora(base, examples, plan, tmp_path / "first", recipe="x", options=options)
    model = with_lora(base.network, options)
    scratch = tmp_path / "next" / ".checkpoints"
    train(model, examples, causal_loss(model), plan, data=digest(examples), folder=scratch)
    with pytest.raises(InferenceInputError, match="another data"):
        train_lora(
            base,
            examples,
            plan,
            tmp_path / "next",
            recipe="x",
            options=options,
            start=tmp_path / "first",
        )
