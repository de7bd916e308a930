"""Attention over a ragged batch: every sequence sees its own part of the store, causally.

Shapes: query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens, head_dim], with
the tokens of all sequences of a step in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from inference.errors import InferenceInputError
from inference.native.store import Store

NAME = "ragwright_ragged"
"""The name under which transformers finds `attend`."""

REFUSED = ("softcap", "s_aux", "position_bias", "head_mask")
"""Arguments some models pass that this attention does not implement."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, end) of a step: one sequence with `past` entries before them.

    `runs` are the slot ranges of all its entries, those of the rows included.
    """

    start: int
    end: int
    past: int
    runs: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Ragged:
    """What a step's layers share: where entries go and who sees what."""

    store: Store
    slots: torch.Tensor
    spans: Sequence[Span]
    _masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    def mask(self, span: Span, window: int | None) -> torch.Tensor:
        """Which of all its entries each row of a span sees: bool [rows, entries]."""
        key = (span.start, window)
        if key not in self._masks:
            device = self.slots.device
            rows = torch.arange(span.past, span.past + span.end - span.start, device=device)
            seen = torch.arange(span.past + span.end - span.start, device=device)
            mask = seen <= rows[:, None]
            if window is not None:
                mask &= seen > rows[:, None] - window
            self._masks[key] = mask
        return self._masks[key]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    *,
    ragged: Ragged,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Attention output [1, tokens, heads, head_dim] of one layer, whose entries it stores."""
    for name in REFUSED:
        if options.get(name) is not None:
            raise InferenceInputError(
                f"{type(module).__name__} needs attention with {name}, which the native engine "
                "does not have; choose a model of the Llama, Qwen2, Qwen3, Mistral or SmolLM family"
            )
    layer = module.layer_idx
    groups = query.shape[1] // key.shape[1]
    ragged.store.write(layer, ragged.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    rows = query[0].transpose(0, 1).unflatten(1, (key.shape[1], groups))
    outputs = []
    for span in ragged.spans:
        runs = span.runs
        if span.end - span.start == 1:
            if sliding_window is not None and sliding_window <= span.past:
                runs = _last(runs, sliding_window)
            keys, values = ragged.store.read(layer, runs)
            # The query heads of one key/value head stand in for query positions: nothing to mask.
            found = scaled_dot_product_attention(
                rows[span.start : span.end],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                scale=scaling,
            )
        else:
            keys, values = ragged.store.read(layer, runs)
            found = _chunk(ragged, span, rows, keys, values, scaling, sliding_window)
        outputs.append(found)
    whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return whole.flatten(1, 2)[None], None


def _chunk(
    ragged: Ragged,
    span: Span,
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Several rows of one sequence: [rows, kv_heads, groups, head_dim]."""
    # [kv_heads, groups, rows, head_dim] against entries expanded over the groups, not copied.
    groups = rows.shape[2]
    plain = span.past == 0 and (window is None or window >= len(keys))
    found = scaled_dot_product_attention(
        rows[span.start : span.end].permute(1, 2, 0, 3),
        keys.transpose(0, 1)[:, None].expand(-1, groups, -1, -1),
        values.transpose(0, 1)[:, None].expand(-1, groups, -1, -1),
        attn_mask=None if plain else ragged.mask(span, window),
        is_causal=plain,
        scale=scaling,
    )
    return found.permute(2, 0, 1, 3)


def _last(runs: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """The last `count` slots of slot ranges."""
    kept: list[tuple[int, int]] = []
    for start, end in reversed(runs):
        if count == 0:
            break
        kept.append((max(start, end - count), end))
        count -= end - kept[-1][0]
    return tuple(reversed(kept))
