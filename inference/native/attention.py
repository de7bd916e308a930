"""Attention over a ragged batch: every sequence sees its own entries, causally or along its tree.

Shapes: query [rows, heads, head_dim], key and value [rows, kv_heads, head_dim], with the tokens of
all sequences of a step in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from inference.native.step import Pad, Step, View, last

FEW = 16
"""Rows up to which the heads of a group are read together; with more, apart is faster."""


@dataclass(slots=True)
class Heads:
    """Query, key and value of one layer; `raw` are query and key before rotation, if known."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    raw: tuple[torch.Tensor, torch.Tensor] | None = None

    def pick(self, rows: torch.Tensor) -> Heads:
        """Those of some rows."""
        raw = None if self.raw is None else (self.raw[0][rows], self.raw[1][rows])
        return Heads(self.query[rows], self.key[rows], self.value[rows], raw)


def attend(
    step: Step, layer: int, heads: Heads, scale: float | None, window: int | None
) -> torch.Tensor:
    """Attention output [rows, heads, head_dim] of one layer, whose entries it stores."""
    step.write(layer, heads.key, heads.value)
    kv_heads = heads.key.shape[1]
    grouped = heads.query.unflatten(1, (kv_heads, -1))  # [rows, kv_heads, groups, head_dim]
    plan = step.plan(window, grouped.dtype)

    def alone(view: View) -> torch.Tensor:
        read = _single if view.rows == 1 and view.tree is None else _chunk
        return read(step, layer, view, grouped, scale, window)

    if len(step.views) == 1 and plan.alone:
        output = alone(plan.alone[0])
    elif plan.pads and plan.pads[0].rows is None:
        output = _together(step, layer, plan.pads[0], grouped, scale)
    else:
        output = torch.empty_like(grouped)
        for pad in plan.pads:
            output[pad.rows] = _together(step, layer, pad, grouped, scale)
        for view in plan.alone:
            output[view.start : view.end] = alone(view)
    for view in step.views:
        if view.cache is not None:
            output[view.start : view.end] = view.cache.attend(layer, view, heads, scale, window)
    if step.recorder is not None:
        step.recorder.attention(step, layer, heads, scale, window)
    return output.flatten(1, 2)


def _together(
    step: Step, layer: int, pad: Pad, grouped: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """One row each of several sequences: [sequences, kv_heads, groups, head_dim]."""
    count = pad.count
    keys, values = step.store.gather(layer, pad.entries)
    # The query heads of one key/value head stand in for query positions.
    return scaled_dot_product_attention(
        grouped if pad.rows is None else grouped[pad.rows],
        keys.unflatten(0, (count, -1)).transpose(1, 2),
        values.unflatten(0, (count, -1)).transpose(1, 2),
        attn_mask=pad.mask,
        scale=scale,
    )


def _single(
    step: Step,
    layer: int,
    view: View,
    grouped: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """The one row of a sequence: [1, kv_heads, groups, head_dim]; it sees all, so no mask."""
    runs = view.runs
    if window is not None and window <= view.past:
        runs = last(runs, window)
    keys, values = step.store.read(layer, runs)
    return scaled_dot_product_attention(
        grouped[view.start : view.end],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        scale=scale,
    )


def _chunk(
    step: Step,
    layer: int,
    view: View,
    grouped: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Several rows of one sequence, or one of a tree: [rows, kv_heads, groups, head_dim]."""
    keys, values = step.store.read(layer, view.runs)
    plain = view.past == 0 and view.tree is None and (window is None or window >= len(keys))
    query = grouped[view.start : view.end].permute(1, 2, 0, 3)
    groups, rows = query.shape[1:3]
    if not plain and rows <= FEW:
        # The query heads of one key/value head stand in for query positions: entries, which cost
        # more than few rows do, are read once for all of them.
        found = scaled_dot_product_attention(
            query.flatten(1, 2)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=step.bias(view, window, query.dtype, groups),
            scale=scale,
        )[0].unflatten(1, (groups, rows))
    else:
        # [kv_heads, groups, rows, head_dim] against entries expanded over the groups, not copied.
        found = scaled_dot_product_attention(
            query,
            keys.transpose(0, 1)[:, None].expand(-1, groups, -1, -1),
            values.transpose(0, 1)[:, None].expand(-1, groups, -1, -1),
            attn_mask=None if plain else step.bias(view, window, query.dtype, 1),
            is_causal=plain,
            scale=scale,
        )
    return found.permute(2, 0, 1, 3)
