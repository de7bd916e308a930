"""A second model inside the step thread: it drafts for many requests over a store of its own.

A line is one request's text as this model has read it: the trunk, which is the request's own, and
behind it a tree of drafted tokens, in the order in which they were pushed. Nothing is ever read
twice: a token sees the trunk and its own ancestors by mask and position, whatever lies between
(LLMCad, arXiv 2309.04255, section 3.2, tree decoder), and what was drafted right is moved up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from inference.errors import DrafterInputError, InferenceError
from inference.native.blocks import BlockManager, salt
from inference.native.model import Model
from inference.native.runner import Runner
from inference.native.sequence import Grown
from inference.native.sequence import Sequence as Row

STEP_TOKENS = 512
"""Most tokens of one forward pass, so that a long prompt is read in pieces between steps."""


@dataclass(slots=True, eq=False)
class Line:
    """One request's row: the first `trunk` ids are its own, the nodes of a draft follow.

    `parents` and `depths` are those of the nodes; -1 is the trunk's last token. `lost` says why
    there is no draft for the request any more: it lacks 'memory', 'context', 'vocabulary' or
    'sound numbers'.
    """

    row: Row
    trunk: int
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    lost: str | None = None
    read: int = 0
    """Tokens that were computed for it, trunk and nodes."""
    _ancestors: list[list[int]] = field(default_factory=list)
    _chain: bool = True

    @property
    def ids(self) -> list[int]:
        """Trunk and nodes."""
        return self.row.ids

    @property
    def waiting(self) -> int:
        """Tokens that are not computed yet; at least one, once synchronised."""
        return len(self.row.ids) - self.row.cached

    def push(self, token: int, parent: int | None = None) -> int:
        """Add a node below `parent`, or below the last token; its number."""
        node = len(self.parents)
        above = node - 1 if parent is None else parent
        assert -1 <= above < node
        self.row.ids.append(token)
        self.parents.append(above)
        self.depths.append(1 if above < 0 else self.depths[above] + 1)
        self._ancestors.append([*(self._ancestors[above] if above >= 0 else ()), node])
        self._chain = self._chain and above == node - 1
        return node

    def follow(self, ids: Sequence[int]) -> list[int]:
        """The nodes that spell the beginning of `ids`, from the trunk down."""
        path: list[int] = []
        for token in ids:
            at = path[-1] if path else -1
            below = (
                node
                for node, parent in enumerate(self.parents)
                if parent == at and self.row.ids[self.trunk + node] == token
            )
            node = next(below, None)
            if node is None:
                break
            path.append(node)
        return path

    def fell(self, trunk: int) -> None:
        """Forget the nodes; the first `trunk` ids are the request's."""
        self.trunk = trunk
        self.parents, self.depths, self._ancestors, self._chain = [], [], [], True

    def sight(self, start: int, end: int) -> Grown | None:
        """What the rows [start, end) see; None for a chain, which is read like any text."""
        if self._chain:
            return None
        low = min(start, self.trunk)
        mask = torch.zeros(end - start, end - low, dtype=torch.bool)
        for row in range(start, end):
            node = row - self.trunk
            mask[row - start, : min(row + 1, self.trunk) - low] = True
            if node >= 0:
                mask[row - start, [self.trunk + one - low for one in self._ancestors[node]]] = True
        places = [self._place(row) for row in range(low, end)]
        return Grown(places[start - low :], places[: start - low], mask)

    def _place(self, row: int) -> int:
        node = row - self.trunk
        return row if node < 0 else self.trunk - 1 + self.depths[node]


class Second:
    """A model that drafts, with its own runner and blocks; used by one thread at a time.

    `kv_bytes` bounds its key/value entries; prompts of the same `tenant` that begin alike share
    them. A request for which there is no memory, context or word, or whose logits are not finite,
    gets no draft any more (`lost`), and never fails for it. Logits are cut to the tokens that
    `target` knows.
    """

    def __init__(
        self, model: Model, target: Model, kv_bytes: int, *, step_tokens: int = STEP_TOKENS
    ) -> None:
        require_same_words(model, target)
        self.model = model
        self.words = min(model.width, model.vocabulary, target.width, target.vocabulary)
        self._budget = step_tokens
        self._runner = Runner(model)
        blocks = BlockManager(1, 0)
        capacity = kv_bytes // (blocks.size * self._runner.store.token_bytes)
        self._blocks = BlockManager(max(capacity, 0), max(capacity, 0))
        self._runner.attach(self._blocks)

    @property
    def used_bytes(self) -> int:
        """Bytes of the entries that lines hold."""
        return self._blocks.used * self._blocks.size * self._runner.store.token_bytes

    def admit(self, ids: Sequence[int], *, tenant: str = "", expected: int = 0) -> Line:
        """A line for a request; its prompt is read when it is stepped.

        `expected` is a guess of its final length, for placing it.
        """
        line = Line(
            Row(list(ids), max(expected, len(ids)), salt(self.model.name, tenant=tenant)), 0
        )
        line.trunk = len(line.ids)
        self._check(line)
        if line.lost is None:
            self._blocks.match(line.row)
        return line

    def sync(self, line: Line, ids: Sequence[int]) -> None:
        """Bring a line to the request's true ids: keep what was drafted right, drop the rest.

        Computes nothing; what is missing is read by the next `step`, the last token always.
        """
        row, trunk = line.row, line.trunk
        if line.lost is not None:
            return
        same = _alike(row.ids[:trunk], ids)
        path: list[int] = []
        if same == trunk:
            path = line.follow(ids[trunk:])
            path = path[: sum(trunk + node < row.cached for node in path)]
        kept = min(row.cached, same)
        if path:
            self._runner.keep(row, trunk, path)
            kept = trunk + len(path)
        line.fell(len(ids))
        row.ids[:] = ids
        self._cut(row, min(kept, len(ids) - 1), same)
        self._check(line)
        if line.lost is None:
            self._blocks.publish(row)

    def step(self, lines: Sequence[Line]) -> list[torch.Tensor | None]:
        """One forward pass; per line the float32 logits [words] behind its last token.

        None for a line that is still reading, because the pass has its limit, or that is lost. The
        lines with the least to read come first.
        """
        found = self.check(lines, [1] * len(lines))
        return [None if logits is None else logits[-1] for logits in found]

    def check(self, lines: Sequence[Line], rows: Sequence[int]) -> list[torch.Tensor | None]:
        """`step`, with the logits [rows, words] behind the last `rows` tokens of each line.

        None of these may have been computed before. A line that is still reading gives none.
        """
        room, picked = self._budget, []
        for line, wanted in sorted(zip(lines, rows, strict=True), key=lambda one: one[0].waiting):
            assert 1 <= wanted <= max(line.waiting, 1) and wanted <= self._budget
            line.row.wanted = len(line.row.ids) - wanted
            # The rows that are asked for are read in one pass, so that their logits come together.
            size = line.waiting if line.waiting <= room else min(room, line.waiting - wanted)
            if not size or not self._grow(line, size):
                continue
            room -= line.row.scheduled
            picked.append(line)
        found = self._forward(picked)
        return [found.get(id(line)) for line in lines]

    def free(self, line: Line) -> None:
        """Take the memory of a line back."""
        if line.row.blocks:
            self._blocks.release(line.row)

    def close(self) -> None:
        """Forget the prefixes that are kept."""
        self._blocks.clear()

    def _forward(self, picked: Sequence[Line]) -> dict[int, torch.Tensor]:
        if not picked:
            return {}
        copies, self._blocks.copies = self._blocks.copies, []
        try:
            results = self._runner.step([line.row for line in picked], copies)
        except InferenceError:  # no memory; what lies in these blocks cannot be trusted
            self._blocks.clear()
            for line in picked:
                self._lose(line, "memory")
            return {}
        found: dict[int, torch.Tensor] = {}
        for line, result in zip(picked, results, strict=True):
            row = line.row
            row.cached += row.scheduled
            line.read += row.scheduled
            row.scheduled, row.grown = 0, None
            if result.logits is not None:
                logits = result.logits[:, : self.words]
                if bool(logits.isfinite().all()):
                    found[id(line)] = logits
                else:
                    self._lose(line, "sound numbers")
        return found

    def _grow(self, line: Line, tokens: int) -> bool:
        """Blocks for the next tokens of a line, and what they see."""
        row = line.row
        self._check(line)
        if line.lost is not None or not tokens:
            return False
        end = row.cached + tokens
        if not self._blocks.grow(row, end):
            self._lose(line, "memory")
            return False
        row.scheduled = tokens
        row.grown = line.sight(row.cached, end)
        return True

    def _check(self, line: Line) -> None:
        """Give a line up whose text this model cannot read."""
        if line.lost is not None:
            return
        deepest = max(line.depths, default=0)
        if line.trunk + deepest > self.model.context_length:
            self._lose(line, "context")
        elif any(token >= self.model.vocabulary for token in line.ids[line.row.cached :]):
            self._lose(line, "vocabulary")

    def _lose(self, line: Line, why: str) -> None:
        line.lost = why
        line.row.scheduled, line.row.grown = 0, None
        self.free(line)

    def _cut(self, row: Row, cached: int, same: int) -> None:
        """Count the first `cached` entries; of the ids the first `same` are as they were."""
        row.cached = cached
        full = min(cached, same) // self._blocks.size
        row.published = min(row.published, full)
        del row.chain[full:]


def require_same_words(model: Model, target: Model) -> None:
    """Raise DrafterInputError unless both models mean the same tokens by the same ids."""
    if model.tokenizer is target.tokenizer:
        return
    mine, theirs = model.tokenizer.get_vocab(), target.tokenizer.get_vocab()
    if mine == theirs:
        return
    other = sorted(
        token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token)
    )
    raise DrafterInputError(
        f"drafting model {model.name!r} has another vocabulary than {target.name!r}: {len(other)} "
        f"tokens differ, {other[0]!r} being {mine.get(other[0])} there and "
        f"{theirs.get(other[0])} here; choose a checkpoint with the tokenizer of {target.name!r}",
        "model",
    )


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two texts share."""
    shorter = min(len(one), len(other))
    if one[:shorter] == list(other[:shorter]):
        return shorter
    return next(at for at in range(shorter) if one[at] != other[at])
