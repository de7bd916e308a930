"""Adapters over a base in half precision: what is multiplied in which type."""

from __future__ import annotations

from pathlib import Path

import torch

from inference.training.base import open_base
from inference.training.examples import Example
from inference.training.lora import LoraOptions, causal_loss, with_lora
from tests.inference.tiny import checkpoint


def test_a_half_precision_base_multiplies_adapters_in_its_type_and_keeps_them_wide(
    tmp_path: Path,
) -> None:
    folder = checkpoint(tmp_path / "model")
    options, gradients, types = LoraOptions(rank=2, targets=("q_proj", "down_proj")), [], set()
    for dtype in ("float32", "bfloat16"):
        model = with_lora(open_base(str(folder), dtype).network, options)
        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                module.register_forward_hook(lambda *call: types.add(call[2].dtype))
        causal_loss(model)([Example.whole(range(4, 30))])[0].backward()
        found = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        assert {one.dtype for one in found} == {torch.float32}
        gradients.append(torch.cat(found))
    assert types == {torch.float32, torch.bfloat16}
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
