"""A linear layer for inference: on a CPU its weight lies in the order oneDNN reads it in.

Measured on two cores with the default model's shapes, packed weights are read at about the
memory's speed, plain ones at about half of it; with float32 and 16 rows the difference is fourfold.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

ROWS_HINT = 16
"""Number of rows the packed order is chosen for; it serves any number."""

SMALL = 1 << 15
"""Weights below this many elements stay plain: waking a second core costs more than they do."""


class Linear:
    """y = x W^T + b for x [rows, inputs]; `packed` weights have no gradient."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, pack: bool = True
    ) -> None:
        self.shape = (int(weight.shape[0]), int(weight.shape[1]))
        self.bias = bias
        self.packed = pack and packs(weight)
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT) if self.packed else weight
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """y [rows, outputs] for x [rows, inputs]."""
        if self.packed:
            found: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
                x, self.weight, self.bias, "none", [], ""
            )
            return found
        return linear(x, self.weight, self.bias)


def packs(weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies this weight on this machine."""
    if weight.numel() < SMALL or weight.device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    operators = torch.ops.mkldnn
    if not (
        hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight")
    ):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return bool(weight.dtype == torch.float32)
