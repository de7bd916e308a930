"""One step of the engine: a single forward over the scheduled tokens of all sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference.errors import InferenceError
from inference.native.attention import NAME, Ragged, Span, attend
from inference.native.blocks import BlockManager
from inference.native.model import Model
from inference.native.sequence import Sequence as Row
from inference.native.store import Store


class Runner:
    """Turns scheduled sequences into tensors and logits; owns the key/value store."""

    def __init__(self, model: Model) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, attend)
        model.network.set_attn_implementation(NAME)
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
            return self._step(picked, copies)

    def _step(
        self, picked: Sequence[Row], copies: Sequence[tuple[int, int]]
    ) -> list[tuple[Row, torch.Tensor]]:
        size = self._size
        last = max((max(seq.blocks) for seq in picked), default=-1)
        self.store.reserve((last + 1) * size)
        for source, target in copies:
            self.store.copy(source * size, target * size, size)
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans: list[Span] = []
        kept: list[int] = []
        parts: list[tuple[Row, int]] = []
        for seq in picked:
            start, end = seq.cached, seq.cached + seq.scheduled
            first = seq.wanted if seq.wanted is not None else len(seq.ids) - 1
            if (count := end - max(start, first)) > 0:
                kept += range(len(ids) + seq.scheduled - count, len(ids) + seq.scheduled)
                parts.append((seq, count))
            spans.append(Span(len(ids), len(ids) + seq.scheduled, start, _runs(seq, size, end)))
            ids += seq.ids[start:end]
            positions += range(start, end)
            slots += [seq.blocks[at // size] * size + at % size for at in range(start, end)]
        logits = self._forward(ids, positions, slots, spans, kept)
        if logits is None:
            return []
        pieces = logits.split([count for _, count in parts])
        return list(zip((seq for seq, _ in parts), pieces, strict=True))

    def _forward(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        spans: Sequence[Span],
        kept: Sequence[int],
    ) -> torch.Tensor | None:
        device = self._model.device
        ragged = Ragged(self.store, torch.tensor(slots, device=device), spans)
        return self._model.forward(
            torch.tensor([ids], device=device),
            torch.tensor([positions], device=device),
            torch.tensor(kept, dtype=torch.long, device=device),
            ragged=ragged,
        )

    def _probe(self) -> None:
        """One token through the model: learns the shapes, and that every layer is ours."""
        row = Row(ids=[0], blocks=[0], scheduled=1)
        self.step([row])
        layers = int(self._model.config.num_hidden_layers)
        if len(self.store.keys) != layers:
            raise InferenceError(
                f"model {self._model.name!r} sends {len(self.store.keys)} of its {layers} layers "
                "through transformers' attention interface, and the native engine needs all; "
                "choose a model of the Llama, Qwen2, Qwen3, Mistral or SmolLM family"
            )


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
