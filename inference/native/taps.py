"""What a step keeps for the requests that watch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from inference.native.attention import Heads
from inference.native.step import Step, View
from inference.taps import Tapped, Taps


@dataclass(slots=True)
class Recorder:
    """Collects per view, by its key; a step without one computes nothing for it."""

    taps: Mapping[int, Taps]
    found: dict[int, Tapped] = field(default_factory=dict)

    @classmethod
    def of(cls, views: Sequence[View], taps: Sequence[Taps | None]) -> Recorder | None:
        """A recorder for the views that are watched, or None."""
        watched = {view.key: tap for view, tap in zip(views, taps, strict=True) if tap is not None}
        if not watched:
            return None
        recorder = cls(watched)
        for view in views:
            if view.key in watched:
                recorder.found[view.key] = Tapped(tuple(view.positions))
        return recorder

    def hidden(self, step: Step, layer: int, states: torch.Tensor) -> None:
        """Input of a layer [rows, hidden]."""
        for view, tap in self._watched(step):
            if layer in tap.hidden:
                _put(self.found[view.key].hidden, layer, states[view.start : view.end])

    def qkv(self, step: Step, layer: int, heads: Heads) -> None:
        """Query, key and value before rotation."""
        assert heads.raw is not None
        for view, tap in self._watched(step):
            if layer in tap.heads:
                rows, found = slice(view.start, view.end), self.found[view.key]
                _put(found.queries, layer, heads.raw[0][rows])
                _put(found.keys, layer, heads.raw[1][rows])
                _put(found.values, layer, heads.value[rows])

    def attention(
        self, step: Step, layer: int, heads: Heads, scale: float | None, window: int | None
    ) -> None:
        """Weights after softmax, computed once more because the kernel does not give them."""
        for view, tap in self._watched(step):
            if layer in tap.attention and view.cache is None:
                skipped = sum(at < tap.attention_from for at in view.positions)
                if view.start + skipped == view.end:
                    continue
                keys, _ = step.store.read(layer, view.runs)
                weights = _weights(
                    heads.query[view.start + skipped : view.end],
                    keys.transpose(0, 1),
                    step.mask(view, window)[skipped:],
                    scale,
                )
                _put(self.found[view.key].attention, layer, weights)

    def _watched(self, step: Step) -> list[tuple[View, Taps]]:
        return [(view, self.taps[view.key]) for view in step.views if view.key in self.taps]


def _weights(
    query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Weights [heads, rows, entries] of query [rows, heads, d] over keys [kv_heads, entries, d]."""
    grouped = query.unflatten(1, (len(keys), -1)).permute(1, 2, 0, 3).float()
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = grouped @ keys[:, None].float().transpose(2, 3) * factor
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).flatten(0, 1)


def _put(held: Mapping[int, torch.Tensor], layer: int, value: torch.Tensor) -> None:
    assert isinstance(held, dict)
    held[layer] = value.clone()
