"""One step of the engine: a single forward over the scheduled tokens of all sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference.native.blocks import BlockManager
from inference.native.model import Model
from inference.native.plain import Plain
from inference.native.sequence import Sequence as Row
from inference.native.step import Step, View
from inference.native.store import Store


class Runner:
    """Turns scheduled sequences into tensors and logits; owns the key/value store."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._size = 1
        self.store = Store()
        self._probe()

    def attach(self, blocks: BlockManager) -> None:
        """Use the block size of `blocks` from now on."""
        self._size = blocks.size

    def step(
        self, picked: Sequence[Row], copies: Sequence[tuple[int, int]] = ()
    ) -> list[tuple[Row, torch.Tensor]]:
        """Compute the scheduled tokens; per sequence its wanted logits [rows, vocabulary].

        `copies` are pairs of blocks (from, to) to copy first. Logits are float32; a sequence
        none of whose rows are wanted gets none.
        """
        with torch.inference_mode():
            size = self._size
            last = max((max(seq.blocks) for seq in picked if seq.blocks), default=-1)
            self.store.reserve((last + 1) * size)
            for source, target in copies:
                self.store.copy(source * size, target * size, size)
            step, parts = self._compose(picked)
            logits = self._model.forward(step)
            if logits is None:
                return []
            pieces = logits.split([count for _, count in parts])
            return list(zip((seq for seq, _ in parts), pieces, strict=True))

    def _compose(self, picked: Sequence[Row]) -> tuple[Step, list[tuple[Row, int]]]:
        """The tensors of a step, and how many rows of logits each sequence gets of it."""
        device, size = self._model.device, self._size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        views: list[View] = []
        kept: list[int] = []
        parts: list[tuple[Row, int]] = []
        for seq in picked:
            start, end = seq.cached, seq.cached + seq.scheduled
            first = seq.wanted if seq.wanted is not None else len(seq.ids) - 1
            if (count := end - max(start, first)) > 0:
                kept += range(len(ids) + seq.scheduled - count, len(ids) + seq.scheduled)
                parts.append((seq, count))
            at = range(start, end)
            views.append(View(len(ids), len(ids) + seq.scheduled, start, _runs(seq, size, end), at))
            ids += seq.ids[start:end]
            positions += at
            slots += [seq.blocks[place // size] * size + place % size for place in at]
        step = Step(
            torch.tensor(ids, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(kept, dtype=torch.long, device=device),
            self.store,
            torch.tensor(slots, dtype=torch.long, device=device),
            views,
        )
        return step, parts

    def _probe(self) -> None:
        """One token through the model: learns the shapes, and that every layer is ours."""
        self.step([Row(ids=[0], blocks=[0], scheduled=1)])
        if isinstance(self._model.network, Plain):
            layers = int(self._model.config.num_hidden_layers)
            self._model.network.check(len(self.store.keys), layers)


def _runs(seq: Row, size: int, tokens: int) -> tuple[tuple[int, int], ...]:
    """Slot ranges of the first `tokens` of a sequence; adjacent blocks make one range."""
    blocks = seq.blocks[: -(-tokens // size)]
    if blocks[-1] - blocks[0] == len(blocks) - 1 and blocks == list(
        range(blocks[0], blocks[-1] + 1)
    ):
        return ((blocks[0] * size, blocks[0] * size + tokens),)
    runs: list[tuple[int, int]] = []
    left = tokens
    for block in blocks:
        start, count = block * size, min(size, left)
        left -= count
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + count)
        else:
            runs.append((start, start + count))
    return tuple(runs)
