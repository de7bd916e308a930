"""What the next forward pass computes: SplitFuse composition over sequences; holds no tensors.

Decoding rows first, then prompts in chunks up to a token budget (Dynamic SplitFuse, DeepSpeed
FastGen, arXiv 2401.08671); a prompt is admitted when blocks for all of it are free.
"""

from __future__ import annotations

from inference.native.blocks import BlockManager
from inference.native.sequence import Sequence, Status

GUARD = 4
"""Preemptions after which a sequence is no victim any more and comes first (Splitwise)."""


class Scheduler:
    """Waiting and running sequences; one `schedule` before and one `advance` after each step.

    With `prefill_first` answers wait while there are prompts to read: the order SplitFuse is
    compared with.
    """

    def __init__(
        self, blocks: BlockManager, budget: int, rows: int, *, prefill_first: bool = False
    ) -> None:
        self.blocks = blocks
        self.budget = budget
        self.rows = rows
        self._prefill_first = prefill_first
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._picked: list[Sequence] = []
        self._arrivals = 0
        self._turns = 0

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; it joins at the next step that has room."""
        seq.arrival = self._arrivals
        self._arrivals += 1
        self._queue(seq)

    def fork(self, parent: Sequence, child: Sequence, cached: int) -> None:
        """Queue `child`, sharing the entries of the first `cached` tokens of `parent`."""
        self.blocks.fork(parent, child, cached)
        self.add(child)

    def schedule(self) -> list[Sequence]:
        """The sequences of the next step, each with `scheduled` > 0, within the budget."""
        self._picked = []
        preempted = sum(s.preemptions for s in self.waiting)
        if not self._prefill_first:
            self._decode()
        self._read()
        # Blocks that were just taken from somebody are not given to a newcomer.
        if preempted == sum(s.preemptions for s in self.waiting):
            self._start()
        if self._prefill_first and not self._picked:
            self._decode()
        return list(self._picked)

    def _decode(self) -> None:
        """One token for every answer; with too small a budget, who waited longest goes first."""
        decoding = [s for s in self.running if s.remaining == 1]
        for seq in sorted(decoding, key=lambda s: s.turn):
            if not self._room() or seq.status is not Status.RUNNING:
                continue
            if self._secure(seq, seq.cached + 1):
                self._pick(seq)
        for seq in self._picked:
            self._guess(seq)

    def _read(self) -> None:
        """Further pieces of prompts that have begun."""
        for seq in sorted(self.running, key=lambda s: s.arrival):
            if self._room() and seq.remaining > 1 and seq.status is Status.RUNNING:
                # A fork may share the block this one writes to next; a prompt waits for a copy
                # rather than take it from somebody who is already part of this step.
                grow = self.blocks.grow if self._picked else self._secure
                if seq.cache is not None or grow(seq, seq.cached + 1):
                    self._pick(seq)

    def _start(self) -> None:
        """Prompts that wait, in order, while there is room for them."""
        while self._room() and self.waiting:
            seq = self.waiting[0]
            rows = seq.group or (seq,)
            crowded = len(self.running) + len(rows) > self.rows
            if (self.running and crowded) or not self._admit(seq):
                break
            for one in rows:
                if self._room() and one.status is Status.RUNNING and not one.scheduled:
                    self._pick(one)

    def advance(self) -> None:
        """Count what the last schedule planned as computed."""
        for seq in self._picked:
            # Of a draft nothing counts before it is known which path is kept.
            seq.cached += 1 if seq.draft is not None else seq.scheduled
            seq.scheduled = 0
            seq.turn = self._turns
            self._turns += 1
            if seq.cache is None:  # what a policy may have shrunk is nobody else's prefix
                self.blocks.publish(seq)
        self._picked = []

    def finish(self, seq: Sequence) -> None:
        """Remove a sequence in whatever state and take its blocks back at once."""
        if seq.status is Status.FINISHED:
            return
        (self.running if seq.status is Status.RUNNING else self.waiting).remove(seq)
        self._drop(seq)
        seq.status = Status.FINISHED

    def preempt(self, seq: Sequence) -> None:
        """Take the blocks of a running sequence and its group; they compute their tokens again."""
        for one in seq.group or (seq,):
            if one.status is Status.RUNNING:
                self.running.remove(one)
                self._drop(one)
                one.preemptions += 1
                self._queue(one)

    def _room(self) -> int:
        return self.budget - sum(seq.scheduled for seq in self._picked)

    def _pick(self, seq: Sequence) -> None:
        seq.scheduled = min(seq.remaining, self._room())
        if seq.chunk is not None and seq.remaining > 1:
            seq.scheduled = min(seq.scheduled, seq.chunk - seq.cached % seq.chunk)
        self._picked.append(seq)

    def _queue(self, seq: Sequence) -> None:
        seq.status = Status.WAITING
        self.waiting.append(seq)
        self.waiting.sort(key=lambda s: (s.preemptions < GUARD, s.arrival))

    def _drop(self, seq: Sequence) -> None:
        if seq in self._picked:
            self._picked.remove(seq)
        seq.scheduled = 0
        seq.draft = None  # its last token is no longer the next one to compute
        self.blocks.release(seq)

    def _secure(self, seq: Sequence, tokens: int) -> bool:
        """Room for `tokens` of a running sequence; False if it was the victim itself."""
        while seq.cache is None and not self.blocks.grow(seq, tokens):
            if self._strip(sparing=None):
                continue
            victims = [s for s in self.running if s.cache is None]
            guarded = [s for s in victims if s.preemptions < GUARD] or victims
            self.preempt(max(guarded, key=lambda s: s.arrival))
            if seq.status is not Status.RUNNING:  # it was the victim, or of its group
                return False
        return True

    def _guess(self, seq: Sequence) -> None:
        """Add a draft, cut to the rows and memory nobody else took: a guess displaces nobody."""
        if seq.draft is None:
            return
        fits = min(self._room(), self.blocks.writable(seq) - 1)
        if fits < len(seq.draft.ids):
            seq.draft = seq.draft.first(fits) if fits > 0 else None
        if seq.draft is not None:
            seq.scheduled += len(seq.draft.ids)
            grown = seq.cache is not None or self.blocks.grow(seq, seq.cached + seq.scheduled)
            assert grown, "writable() counted these blocks"

    def _admit(self, seq: Sequence) -> bool:
        """Start a waiting sequence, and its group, if blocks for all of their tokens are free."""
        rows = [one for one in seq.group or (seq,) if one.status is Status.WAITING]
        while True:
            matched = [one for one in rows if one.cache is None and not one.blocks]
            for one in matched:
                self.blocks.match(one)
            if all(self._take(one) for one in rows):
                break
            for one in matched:
                self.blocks.release(one)
            # With nobody running, what waiting forks hold is all that can be in the way.
            spared = seq if len(rows) == 1 else None
            if self.running or not (self._strip(sparing=spared) or self._strip(sparing=None)):
                return False
        for one in rows:
            self.waiting.remove(one)
            self.running.append(one)
            one.status = Status.RUNNING
            if not one.preemptions:
                one.reused = one.cached
        return True

    def _take(self, seq: Sequence) -> bool:
        """Memory for all tokens of a sequence that starts."""
        if seq.cache is not None:
            return bool(seq.reserved) or self.blocks.set_apart(seq)
        return self.blocks.grow(seq, len(seq.ids))

    def _strip(self, sparing: Sequence | None) -> bool:
        """Take the blocks of the newest waiting fork that holds any."""
        holders = [s for s in self.waiting if s.blocks and s is not sparing]
        if not holders:
            return False
        self.blocks.release(max(holders, key=lambda s: s.arrival))
        return True
