"""An adapter that learns while a text is read: Temp-LoRA's checks, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from inference import InferenceError, InferenceInputError
from inference.adapters.lora import Adapter
from inference.training.base import open_base
from inference.training.online import LoraTrainer
from tests.inference.hooked import carrying
from tests.inference.test_training import fingerprint
from tests.inference.tiny import checkpoint

CONTEXT, CHUNK, OTHER = list(range(5, 15)), list(range(40, 60)), list(range(200, 220))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_base(str(checkpoint(tmp_path_factory.mktemp("online")))).network


def logits(network: Any, *adapters: Adapter) -> torch.Tensor:
    """Of the chunk, with adapters carried through the engine's product."""
    ids = torch.tensor([CONTEXT + CHUNK])
    with torch.no_grad():
        if not adapters:
            found: torch.Tensor = network(ids).logits[0]
            return found
        with carrying(network, *adapters):
            return network(ids).logits[0]  # type: ignore[no-any-return]


def test_before_the_first_update_nothing_is_changed(network: Any) -> None:
    trainer = LoraTrainer(network, rank=4)
    assert torch.equal(logits(network, trainer.adapter), logits(network))
    assert trainer.score(CHUNK, CONTEXT) == trainer.score(CHUNK, CONTEXT, adapted=False)


def test_what_was_read_becomes_likely_and_the_base_stays(network: Any) -> None:
    before = fingerprint(network), logits(network)
    trainer = LoraTrainer(network, rank=4, lr=1e-2, steps=3)
    base = trainer.score(CHUNK, CONTEXT)
    updates = [trainer.update(CHUNK, CONTEXT) for _ in range(4)]
    assert updates[0].losses[0] == pytest.approx(base)
    assert updates[-1].losses[-1] < updates[0].losses[0] / 2
    assert len({update.adapter.digest for update in updates}) == 4  # each is a copy
    assert trainer.score(CHUNK, CONTEXT, adapted=False) == base
    assert fingerprint(network) == before[0]
    assert torch.equal(logits(network), before[1])


def test_the_adapter_gives_the_engine_what_the_trainer_sees(network: Any) -> None:
    trainer = LoraTrainer(network, rank=4, targets=("q_proj", "down_proj"), lr=1e-2)
    adapter = trainer.update(CHUNK, CONTEXT).adapter
    log = logits(network, adapter).log_softmax(-1)
    first = len(CONTEXT) - 1
    seen = [log[first + i, token].item() for i, token in enumerate(CHUNK)]
    assert -sum(seen) / len(seen) == pytest.approx(trainer.score(CHUNK, CONTEXT), rel=1e-4)


def test_context_carries_no_loss(network: Any) -> None:
    trainer = LoraTrainer(network, rank=2, steps=1)
    [loss] = trainer.update(CHUNK, CONTEXT).losses
    log = logits(network).log_softmax(-1)
    first = len(CONTEXT) - 1
    wanted = -sum(log[first + i, token].item() for i, token in enumerate(CHUNK)) / len(CHUNK)
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_sessions_do_not_mix(network: Any) -> None:
    """Two texts learned in turns, and at the same time, give what each gives alone."""

    def learned(trainer: LoraTrainer, ids: list[int], into: dict[str, str], name: str) -> None:
        for _ in range(3):
            into[name] = trainer.update(ids).adapter.digest

    alone: dict[str, str] = {}
    for name, ids in (("a", CHUNK), ("b", OTHER)):
        learned(LoraTrainer(network, lr=1e-3), ids, alone, name)
    first, second = LoraTrainer(network, lr=1e-3), LoraTrainer(network, lr=1e-3)
    turns: dict[str, str] = {}
    for _ in range(3):
        turns = {"a": first.update(CHUNK).adapter.digest, "b": second.update(OTHER).adapter.digest}
    assert turns == alone
    together: dict[str, str] = {}
    threads = [
        Thread(target=learned, args=(LoraTrainer(network, lr=1e-3), ids, together, name))
        for name, ids in (("a", CHUNK), ("b", OTHER))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_dropout_is_a_function_of_the_seed(network: Any) -> None:
    def learned(**options: Any) -> str:
        trainer = LoraTrainer(network, rank=2, lr=1e-3, **options)
        torch.rand(3)  # what others draw does not matter
        return [trainer.update(CHUNK).adapter.digest for _ in range(2)][-1]

    assert learned(dropout=0.3) == learned(dropout=0.3) != learned()


def test_updates_work_where_the_engine_infers(network: Any) -> None:
    with torch.inference_mode():
        trainer = LoraTrainer(network, lr=1e-2)
        losses = trainer.update(CHUNK).losses
    assert losses[1] < losses[0]
    assert trainer.update(CHUNK).losses[0] < losses[1]


def test_what_cannot_be_learned_is_refused(network: Any, tmp_path: Path) -> None:
    trainer = LoraTrainer(network)
    held = trainer.adapter.digest
    with pytest.raises(InferenceInputError, match="context 256"):
        trainer.update(CHUNK, range(300))
    with pytest.raises(InferenceInputError, match="none to learn"):
        trainer.update([])
    assert trainer.adapter.digest == held
    with pytest.raises(InferenceInputError, match="lr=0"):
        LoraTrainer(network, lr=0)
    wild = LoraTrainer(network, lr=1e30)
    with pytest.raises(InferenceError, match="lower lr"):
        wild.update(CHUNK)
