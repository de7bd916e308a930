"""A task that guesses its own next tokens as random trees, on the real step loop."""

from __future__ import annotations

import queue
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from inference import FinishReason, Request
from inference.grammar.matcher import Matcher
from inference.native.engine import NativeEngine
from inference.native.loop import Core
from inference.native.sequence import Draft
from inference.native.sequence import Sequence as Row
from inference.native.task import Job
from inference.taps import Tapped


def random_draft(
    draw: random.Random, truth: Sequence[int], size: int, words: Sequence[int] = range(4, 320)
) -> Draft:
    """A tree of `size` of the `words`, in which `truth` is a path that seldom comes first."""
    ids: list[int] = []
    parents: list[int] = []
    line = -1  # the node that ends the true path so far
    depth = 0
    while len(ids) < size:
        if depth < len(truth) and draw.random() < 0.5:
            ids.append(truth[depth])
            parents.append(line)
            line, depth = len(ids) - 1, depth + 1
        else:
            parents.append(draw.randint(-1, len(ids) - 1))
            ids.append(draw.choice(words))
    return Draft(tuple(ids), tuple(parents))


@dataclass(frozen=True)
class Seen:
    """What one tree gave: `logits` [1 + draft, vocabulary] behind the tokens `ids`."""

    ids: list[int]
    draft: Draft
    logits: torch.Tensor

    def path(self, node: int) -> list[int]:
        """Tokens up to a row: 0 is the sequence's last token, the draft's follow."""
        line = self.draft.ancestors()[node - 1] if node else []
        return [*self.ids, *(self.draft.ids[at] for at in line)]


Accept = Callable[[Row, torch.Tensor], list[int]]


def greedy(row: Row, logits: torch.Tensor) -> list[int]:
    """The path that plain greedy decoding takes."""
    assert row.draft is not None
    path: list[int] = []
    while True:
        at = path[-1] if path else -1
        token = int(logits[at + 1].argmax())
        below = [
            node
            for node, parent in enumerate(row.draft.parents)
            if parent == at and row.draft.ids[node] == token
        ]
        if not below:
            return path
        path.append(below[0])


@dataclass(eq=False)
class Guessing:
    """Decodes greedily; after each token `guess` may draft, `accept` says what is kept."""

    job: Job
    row: Row
    guess: Callable[[list[int]], Draft | None]
    accept: Accept = greedy
    matcher: Matcher | None = None
    stop_ids: frozenset[int] = frozenset()
    seen: list[Seen] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    ended: queue.SimpleQueue[object] = field(default_factory=queue.SimpleQueue)
    door: str = "answers"
    continued: int = 0

    @property
    def rows(self) -> tuple[Row, ...]:
        return (self.row,)

    @property
    def produced(self) -> list[int]:
        return self.row.ids[len(self.job.prompt) :]

    @property
    def left(self) -> int:
        return self.job.request.sampling.max_tokens - len(self.produced)

    def stepped(self, tapped: Sequence[Tapped]) -> None: ...

    def verify(self, row: Row, logits: torch.Tensor) -> list[int]:
        assert row.draft is not None
        self.seen.append(Seen(list(row.ids), row.draft, logits.clone()))
        path = self.accept(row, logits)[: self.left - 1]
        self.kept.append(len(path))
        row.ids.extend(row.draft.ids[at] for at in path)
        return path

    def take(self, row: Row, logits: torch.Tensor) -> FinishReason | None:
        assert len(logits) == 1
        chosen = logits[0] if self.matcher is None else self.matcher.mask(logits[0])
        token = int(chosen.argmax())
        if self.matcher is not None:
            assert self.matcher.accept(token)
        row.ids.append(token)
        if token in self.stop_ids:
            return FinishReason.STOP
        if not self.left:
            return FinishReason.LENGTH
        row.draft = self.guess(row.ids)
        return None

    def end(self, reason: FinishReason) -> None:
        self.ended.put(reason)

    def fail(self, error: Exception) -> None:
        self.ended.put(error)

    def result(self) -> tuple[int, ...]:
        """The produced tokens; raises what went wrong."""
        outcome = self.ended.get(timeout=60)
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome in (FinishReason.LENGTH, FinishReason.STOP), outcome
        return tuple(self.produced)


def guesser(
    draw: random.Random,
    truth: Sequence[int],
    prompt: int,
    size: int,
    words: Sequence[int] = range(4, 320),
) -> Callable[[list[int]], Draft]:
    """Random trees around the known continuation `truth` of a prompt of `prompt` tokens."""

    def guess(ids: list[int]) -> Draft:
        done = len(ids) - prompt
        known = truth[done:] if ids[prompt:] == list(truth[:done]) else []
        return random_draft(draw, known, draw.randint(1, size), words)

    return guess


@contextmanager
def admitted(engine: NativeEngine, requests: Sequence[Request]) -> Iterator[list[tuple[Job, Row]]]:
    """Jobs and rows as the engine makes them."""
    desk = engine._admission()
    with desk.admit(requests) as jobs:
        yield [(job, desk.rows(job)[0]) for job in jobs]


@contextmanager
def watched(core: Core) -> Iterator[list[int]]:
    """Every step is checked: what it writes belongs to one row, and to nobody's prefix.

    Yields the number of draft tokens of every step.
    """
    step, log = core.runner.step, []

    def checked(picked: Sequence[Row], copies: Any = ()) -> Any:
        size, written = core.blocks.size, []
        for row in picked:
            if row.cache is None:
                written += [
                    row.blocks[at // size]
                    for at in {
                        at // size * size for at in range(row.cached, row.cached + row.scheduled)
                    }
                ]
        assert len(set(written)) == len(written)
        assert all(core.blocks.references(block) == 1 for block in written)
        assert not set(written) & set(core.blocks._hash_of)
        assert sum(row.scheduled for row in picked) <= core.scheduler.budget
        log.append(sum(len(row.draft.ids) for row in picked if row.draft is not None))
        return step(picked, copies)

    core.runner.step = checked  # type: ignore[method-assign]
    try:
        yield log
    finally:
        core.runner.step = step  # type: ignore[method-assign]
