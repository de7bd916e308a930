"""Where one answer stands in its grammar: what may follow, and what has been read.

Shapes: logits [width] or [rows, width]; masks [rows, ceil(width / 32)] int32 on the CPU, bit
`i % 32` of word `i // 32` set where token `i` is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xgrammar as xg

from inference.errors import GrammarDeadEnd


@dataclass(frozen=True, slots=True)
class TreeMasks:
    """Masks of the nodes of a draft tree; a row may be sampled from only where `alive`.

    A node is dead if its token, or one above it, is refused by the grammar, or if a stop token
    above it has ended the text.
    """

    words: torch.Tensor
    alive: tuple[bool, ...]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy of logits [nodes, width] with -inf where forbidden; dead rows are left alone."""
        rows = [at for at, alive in enumerate(self.alive) if alive]
        masked = logits.clone()
        if rows:
            xg.apply_token_bitmask_inplace(masked, self.words.to(logits.device), indices=rows)
        return masked

    def row(self, logits: torch.Tensor, node: int) -> torch.Tensor:
        """A copy of one node's logits [width] with -inf where forbidden; as they are if dead."""
        masked = logits.clone()
        if self.alive[node]:
            xg.apply_token_bitmask_inplace(masked, self.words[node].to(logits.device))
        return masked


class Matcher:
    """The state of one sequence; forks share nothing with it that changes."""

    __slots__ = ("_inner", "_stop_ids", "_tokens", "_words", "kind", "width")

    def __init__(
        self, automaton: Any, kind: str, width: int, stop_ids: frozenset[int], inner: Any = None
    ) -> None:
        self.kind = kind
        self.width = width
        self._stop_ids = stop_ids
        self._inner = xg.GrammarMatcher(automaton) if inner is None else inner
        self._words = xg.allocate_token_bitmask(1, width)
        self._tokens = 0

    @property
    def complete(self) -> bool:
        """True if what was read is a whole text of the grammar."""
        return bool(self._inner.is_completed() or self._inner.is_terminated())

    @property
    def terminated(self) -> bool:
        """True once a stop token was read; nothing may follow."""
        return bool(self._inner.is_terminated())

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self._tokens

    def note(self) -> dict[str, Any]:
        """What an output says about its grammar."""
        return {"kind": self.kind, "complete": self.complete}

    def fill(self) -> torch.Tensor:
        """The mask [1, words] of the next token, overwritten by later calls; zero after the end."""
        if self.terminated:
            return self._words.zero_()
        xg.reset_token_bitmask(self._words)
        self._inner.fill_next_token_bitmask(self._words)
        return self._words

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy of logits [width] with -inf where a token is forbidden.

        Call it before any transform of the sampler. Raises GrammarDeadEnd where nothing may
        follow.
        """
        assert logits.shape[-1] == self.width, (logits.shape, self.width)
        words = self.require_continuation()
        masked = logits.clone()
        xg.apply_token_bitmask_inplace(masked, words.to(logits.device))
        return masked

    def require_continuation(self) -> torch.Tensor:
        """The mask of the next token; raises GrammarDeadEnd where nothing may follow."""
        words = self.fill()
        if not bool(words.any()):
            raise GrammarDeadEnd(
                f"the {self.kind} grammar allows nothing after {self._tokens} tokens: a rule can "
                "never be finished, or the text needs a character that the model cannot write; "
                "correct the grammar"
            )
        return words

    def require_start(self) -> None:
        """Raises RuntimeError if no text can begin."""
        if not bool(self.fill().any()):
            raise RuntimeError("grammar: no text belongs to it")

    def accept(self, token_id: int) -> bool:
        """Read one token; False (and no change) if the grammar refuses it."""
        if self.terminated or not self._inner.accept_token(token_id):
            return False
        self._tokens += 1
        return True

    def read(self, text: str) -> bool:
        """Read a text, or nothing (and return False) if the grammar refuses it."""
        spelt = text.encode(errors="surrogatepass")  # half characters belong to no grammar
        return not self.terminated and bool(self._inner.accept_string(spelt))

    def rollback(self, tokens: int) -> None:
        """Forget the last `tokens` tokens."""
        assert 0 <= tokens <= self._tokens, (tokens, self._tokens)
        if tokens:
            self._inner.rollback(tokens)
            self._tokens -= tokens

    def fork(self) -> Matcher:
        """An independent matcher in the same state."""
        twin = Matcher(None, self.kind, self.width, self._stop_ids, self._inner.fork())
        twin._tokens = self._tokens
        return twin

    def tree_masks(self, parents: Sequence[int], tokens: Sequence[int]) -> TreeMasks:
        """The mask after each node of a draft tree; this matcher stays as it is.

        Node 0 is the last token read, with parent -1 (its entry in `tokens` is not looked at);
        every other node follows its parent. Row i allows what may come after the path to node i.
        """
        nodes = len(parents)
        child, sibling = _links(parents)
        # Zeroed first: the traversal leaves the rows below a refused node as they were.
        words = torch.zeros(nodes, self._words.shape[1], dtype=torch.int32)
        if not self.terminated:
            self._inner.traverse_draft_tree(
                child, sibling, torch.tensor(list(tokens), dtype=torch.int64), words
            )
        alive = words.ne(0).any(dim=1).tolist()
        for node, parent in enumerate(parents):
            alive[node] = alive[node] and (parent < 0 or alive[parent])
        return TreeMasks(words, tuple(alive))


def _links(parents: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """First child and next sibling of each node [nodes], int64, -1 where there is none."""
    child = [-1] * len(parents)
    sibling = [-1] * len(parents)
    last: dict[int, int] = {}
    for node, parent in enumerate(parents):
        if parent < 0:
            assert node == 0, "node 0 is the only root"
            continue
        assert parent < node, "a parent comes before its children"
        if parent in last:
            sibling[last[parent]] = node
        else:
            child[parent] = node
        last[parent] = node
    return torch.tensor(child, dtype=torch.int64), torch.tensor(sibling, dtype=torch.int64)
