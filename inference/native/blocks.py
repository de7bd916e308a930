"""Which block of the key/value store belongs to whom: counts, prefix hashes, free blocks."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

from inference.native.sequence import Sequence

BLOCK = 16
"""Tokens per block."""

BLANK, TAKEN, ASIDE = 0, 1, 2


def salt(model: str, adapter: str = "", tenant: str = "", policy: str = "") -> bytes:
    """Root of a hash chain: entries are shared only where all of these are the same."""
    text = "\0".join((model, adapter, tenant, policy))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class BlockManager:
    """Blocks 0 to capacity - 1, handed out by reference count; holds no tensors.

    A full block whose entries are computed is known by the hash of all tokens up to its end. A
    freed block with a hash stays findable, at most `keep` of them, the least recently freed
    going first. Blocks of one sequence are placed side by side where possible, because adjacent
    blocks are read without copying: `ASIDE` marks blocks that a neighbour will probably want.
    """

    def __init__(self, capacity: int, keep: int, size: int = BLOCK) -> None:
        self.capacity = capacity
        self.size = size
        self.copies: list[tuple[int, int]] = []
        self._keep = keep
        self.reserved = 0
        self._refs: dict[int, int] = {}
        self._marks = bytearray(capacity)
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # hashed and unused, oldest first

    @property
    def used(self) -> int:
        """Blocks that at least one sequence holds."""
        return len(self._refs)

    @property
    def idle(self) -> int:
        """Blocks nobody holds whose entries can still be found by their tokens."""
        return len(self._idle)

    @property
    def free(self) -> int:
        """Blocks that can be handed out."""
        return self.capacity - len(self._refs) - self.reserved

    def references(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._refs.get(block, 0)

    def match(self, seq: Sequence) -> None:
        """Give `seq`, which holds nothing, the longest known prefix of its tokens."""
        assert not seq.blocks
        for digest in self._chain(seq, seq.reusable // self.size):
            block = self._by_hash.get(digest)
            if block is None:
                break
            self._idle.pop(block, None)
            self._refs[block] = self._refs.get(block, 0) + 1
            seq.blocks.append(block)
        seq.published = len(seq.blocks)
        seq.cached = seq.published * self.size

    def writable(self, seq: Sequence) -> int:
        """How many tokens after `cached` a sequence can have without taking from others."""
        if seq.cache is not None:
            return (self.free + 1) * self.size  # its reserve has a block's worth of slack
        shared = len(self._shared(seq))
        if shared > self.free:
            return 0
        return (len(seq.blocks) + self.free - shared) * self.size - seq.cached

    def known(self, seq: Sequence) -> int:
        """Leading tokens of `seq` that `match` would find."""
        chain = self._chain(seq, seq.reusable // self.size)
        return next(
            (at for at, one in enumerate(chain) if one not in self._by_hash), len(chain)
        ) * (self.size)

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Blocks for the first `tokens` of `seq`, writable after `cached`; False if too few.

        A shared block that is about to be written to is replaced by an own one, and the pair is
        left in `copies` for whoever holds the tensors. Nothing changes where there are too few.
        """
        shared = self._shared(seq)
        missing = -(-tokens // self.size) - len(seq.blocks)
        if max(missing, 0) + len(shared) > self.free:
            return False
        for at in shared:
            old = seq.blocks[at]
            seq.blocks[at] = self._take(-1, 1)
            self._refs[old] -= 1
            self.copies.append((old, seq.blocks[at]))
            seq.published = min(seq.published, at)
        for block in seq.blocks[seq.cached // self.size :]:
            # A fork may be the last holder of a block that is known by its parent's tokens.
            if digest := self._hash_of.pop(block, None):
                del self._by_hash[digest]
        for _ in range(missing):
            seq.blocks.append(self._take(seq.blocks[-1] if seq.blocks else -1, missing, seq))
        return True

    def set_apart(self, seq: Sequence) -> bool:
        """Keep memory of `seq.reserve` blocks free for its own tensors; False if too little."""
        if seq.reserve > self.free:
            return False
        self.reserved += seq.reserve
        seq.reserved = seq.reserve
        self._make_room(0)
        return True

    def fork(self, parent: Sequence, child: Sequence, cached: int) -> None:
        """Let `child` hold the blocks of the first `cached` tokens, which the two share."""
        assert not child.blocks and cached <= parent.cached
        child.blocks = parent.blocks[: -(-cached // self.size)]
        child.cached = cached
        child.published = min(parent.published, cached // self.size)
        for block in child.blocks:
            self._refs[block] += 1

    def publish(self, seq: Sequence) -> None:
        """Make the full blocks of `seq` findable, after their entries were computed."""
        full = seq.cached // self.size
        if not self._keep or full == seq.published:
            return
        chain = self._chain(seq, full)
        for at in range(seq.published, full):
            block = seq.blocks[at]
            if chain[at] not in self._by_hash and block not in self._hash_of:
                self._by_hash[chain[at]] = block
                self._hash_of[block] = chain[at]
        seq.published = full

    def release(self, seq: Sequence) -> None:
        """Take everything back from `seq`; its tail becomes reusable before its beginning."""
        self.reserved -= seq.reserved
        seq.reserved = 0
        for block in reversed(seq.blocks):
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            del self._refs[block]
            if block in self._hash_of:
                self._idle[block] = None
            else:
                self._marks[block] = BLANK
        for block in seq.aside:
            if self._marks[block] == ASIDE:
                self._marks[block] = BLANK
        seq.blocks, seq.cached, seq.published, seq.aside = [], 0, 0, range(0)
        while len(self._idle) > self._keep:
            self._marks[self._forget_oldest()] = BLANK

    def clear(self) -> None:
        """Forget every known prefix; blocks in use stay with their sequences."""
        for block in self._idle:
            self._marks[block] = BLANK
        self._idle.clear()
        self._by_hash.clear()
        self._hash_of.clear()

    def _shared(self, seq: Sequence) -> list[int]:
        """Which of the blocks that a sequence writes to next others hold too."""
        first = seq.cached // self.size
        return [at for at in range(first, len(seq.blocks)) if self._refs[seq.blocks[at]] > 1]

    def _chain(self, seq: Sequence, full: int) -> list[bytes]:
        """Hashes of the first `full` blocks, each over the tokens up to its end."""
        if not self._keep:
            return []
        while len(seq.chain) < full:
            start = len(seq.chain) * self.size
            last = seq.chain[-1] if seq.chain else seq.salt
            data = last + array("q", seq.ids[start : start + self.size]).tobytes()
            seq.chain.append(hashlib.blake2b(data, digest_size=16).digest())
        return seq.chain[:full]

    def _take(self, before: int, count: int, seq: Sequence | None = None) -> int:
        """A block, the one after `before` if possible, else a start of `count` blank ones."""
        self._make_room(1)
        block = before + 1
        if before < 0 or block >= self.capacity or self._marks[block] == TAKEN:
            wanted = max(count, -(-seq.expected // self.size) if seq else 1)
            block = self._place(wanted, count)
            if seq is not None and block >= 0:
                self._set_aside(seq, block, wanted)
        self._marks[block] = TAKEN
        self._refs[block] = 1
        return block

    def _place(self, wanted: int, count: int) -> int:
        """First of as many adjacent blanks as there are, up to `wanted`; -1 without any."""
        for length in (wanted, count, 1):
            if (start := self._marks.find(bytes(length))) >= 0:
                return start
        return self._marks.find(bytes([ASIDE]))

    def _set_aside(self, seq: Sequence, start: int, count: int) -> None:
        end = start
        while end < min(start + count, self.capacity) and self._marks[end] == BLANK:
            self._marks[end] = ASIDE
            end += 1
        for block in seq.aside:
            if self._marks[block] == ASIDE and not start <= block < end:
                self._marks[block] = BLANK
        seq.aside = range(start, end)

    def _make_room(self, count: int) -> None:
        """Forget so many prefixes that `count` blocks fit beside what is held and reserved."""
        taken = len(self._refs) + self.reserved + count
        while self._idle and taken + len(self._idle) > self.capacity:
            self._marks[self._forget_oldest()] = BLANK

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._by_hash[self._hash_of.pop(block)]
        return block
