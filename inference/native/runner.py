"""One step of the engine: a single forward over the scheduled tokens of all sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference.adapters.batch import Stacks
from inference.kv import Moment
from inference.native.blocks import BlockManager
from inference.native.model import Model
from inference.native.plain import Plain
from inference.native.sequence import Sequence as Row
from inference.native.snapshot import Snapshot
from inference.native.step import Step, View, lora
from inference.native.store import Store
from inference.native.taps import Recorder
from inference.taps import Tapped


@dataclass(slots=True)
class Result:
    """What a step gave one sequence: logits [rows, vocabulary] if any were wanted, and taps.

    `hidden` [rows, hidden] are the states the logits were computed from, where they are asked for.
    """

    row: Row
    view: View
    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    tapped: Tapped | None = None


class Runner:
    """Turns scheduled sequences into tensors and logits; owns the key/value store."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._size = 1
        self._stacks = Stacks()
        self.store = Store()
        self._probe()

    def attach(self, blocks: BlockManager) -> None:
        """Use the block size of `blocks` from now on."""
        self._size = blocks.size

    def step(self, picked: Sequence[Row], copies: Sequence[tuple[int, int]] = ()) -> list[Result]:
        """Compute the scheduled tokens; one result per sequence, in their order.

        `copies` are pairs of blocks (from, to) to copy first. Logits are float32. Rows of a draft
        follow the sequence's last token and all yield logits; `settle` must be called for it.
        """
        with torch.inference_mode():
            size = self._size
            last = max((max(seq.blocks) for seq in picked if seq.blocks), default=-1)
            self.store.reserve((last + 1) * size)
            for source, target in copies:
                self.store.copy(source * size, target * size, size)
            step, counts = self._compose(picked)
            logits = self._model.forward(step)
            results = [Result(row, view) for row, view in zip(picked, step.views, strict=True)]
            if logits is not None:
                for result, piece in zip(results, logits.split(counts), strict=True):
                    result.logits = piece if len(piece) else None
            if step.hidden is not None:
                for result, piece in zip(results, step.hidden.split(counts), strict=True):
                    result.hidden = piece if result.row.shows_hidden and len(piece) else None
            if step.recorder is not None:
                for result in results:
                    result.tapped = step.recorder.found.get(result.view.key)
            return results

    def settle(self, result: Result, path: Sequence[int]) -> None:
        """Keep the entries of `path`, draft tokens from parent to child; drop the other rows'.

        Counts the kept tokens as cached; their ids are for the caller to append.
        """
        row, view = result.row, result.view
        start = row.cached  # the row of the last token is counted already
        with torch.inference_mode():
            if row.cache is not None:
                row.cache.settle(view, [0, *(at + 1 for at in path)])
            elif list(path) != list(range(len(path))):
                self.store.move(
                    [self._slot(row, start + at) for at in path],
                    [self._slot(row, start + at) for at in range(len(path))],
                )
        row.cached = start + len(path)
        row.draft = None

    def snapshot(self, row: Row) -> Snapshot:
        """Copy the entries a row holds."""
        name = self._model.fingerprint
        if row.cache is not None:
            return Snapshot.of_cache(name, row, row.cache)
        return Snapshot.of_store(name, row, self.store, _runs(row, self._size, row.cached))

    def load(self, row: Row, snapshot: Snapshot) -> None:
        """Write a whole snapshot into the blocks of a row, which then counts as cached."""
        tokens = len(snapshot.token_ids)
        slots = torch.tensor([self._slot(row, at) for at in range(tokens)])
        self.store.reserve((max(row.blocks) + 1) * self._size)
        device = self._model.device
        with torch.inference_mode():
            for layer in self.store.keys:
                keys, values = (snapshot.tensors[f"{n}.{layer}"] for n in ("keys", "values"))
                self.store.write(layer, slots.to(device), keys.to(device), values.to(device))
        row.cached = tokens

    def forget_adapters(self) -> None:
        """Free what was stacked for adapters."""
        self._stacks.forget()

    def _slot(self, row: Row, at: int) -> int:
        return row.blocks[at // self._size] * self._size + at % self._size

    def _compose(self, picked: Sequence[Row]) -> tuple[Step, list[int]]:
        """The tensors of a step, and how many rows of logits each sequence gets of it."""
        device = self._model.device
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        paged: list[int] = []
        kept: list[int] = []
        counts: list[int] = []
        views: list[View] = []
        for seq in picked:
            start, end, first = seq.cached, seq.cached + seq.scheduled, len(ids)
            rows = range(first, first + seq.scheduled)
            wanted = seq.wanted if seq.wanted is not None else len(seq.ids) - 1
            counts.append(max(0, end - max(start, wanted)))
            kept += rows[len(rows) - counts[-1] :]
            tokens, places, tree = _tokens(seq, device)
            if seq.cache is None:
                slots += [self._slot(seq, at) for at in range(start, end)]
                paged += rows
            else:
                seq.cache.moment = _moment(seq, end)
            runs = () if seq.cache is not None else _runs(seq, self._size, end)
            views.append(
                View(
                    len(views),
                    rows.start,
                    rows.stop,
                    start,
                    runs,
                    places,
                    tree,
                    seq.cache,
                    seq.skip if start >= seq.prompt else range(0),
                    seq.adapters,
                )
            )
            ids += tokens
            positions += places
        step = Step(
            torch.tensor(ids, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(kept, dtype=torch.long, device=device),
            self.store,
            torch.tensor(slots, dtype=torch.long, device=device),
            views,
            None if len(paged) == len(ids) else torch.tensor(paged, device=device).long(),
            lora(views, self._stacks),
            Recorder.of(views, [seq.taps for seq in picked]),
            self._stacks,
            any(seq.shows_hidden for seq in picked),
        )
        return step, counts

    def _probe(self) -> None:
        """One token through the model: learns the shapes, and that every layer is ours."""
        self.step([Row(ids=[0], blocks=[0], scheduled=1)])
        if isinstance(self._model.network, Plain):
            layers = int(self._model.config.num_hidden_layers)
            self._model.network.check(len(self.store.keys), layers)


def _tokens(seq: Row, device: torch.device) -> tuple[list[int], Sequence[int], torch.Tensor | None]:
    """Ids and positions of a sequence's rows, and what they see of each other if it is a tree."""
    start, end = seq.cached, seq.cached + seq.scheduled
    draft = seq.draft
    if draft is None:
        return seq.ids[start:end], range(start, end), None
    rows = 1 + len(draft.ids)
    assert seq.scheduled == rows
    tree = torch.zeros(rows, rows, dtype=torch.bool)
    tree[:, 0] = True
    for at, line in enumerate(draft.ancestors()):
        tree[at + 1, [one + 1 for one in line]] = True
    places = [start, *(start + depth for depth in draft.depths())]
    return [seq.ids[start], *draft.ids], places, tree.to(device)


def _moment(seq: Row, end: int) -> Moment:
    """How far a sequence is once its tokens before `end` are computed."""
    if seq.cached >= seq.prompt:
        return Moment.TOKEN
    if end == seq.prompt:
        return Moment.PROMPT
    ends_chunk = seq.chunk is not None and end % seq.chunk == 0
    return Moment.CHUNK if ends_chunk else Moment.PIECE


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
