"""One request's drafting: its proposer's state, its drafts, and what came of them."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from inference.native.sampling import process, require_sound
from inference.native.sequence import Draft
from inference.native.sequence import Sequence as Row
from inference.speculative.base import MOST, Drafter, Proposal, Proposer, Start, Turn
from inference.speculative.reach import Reach
from inference.speculative.spec import name_of
from inference.speculative.switch import Costs, Record, Switch
from inference.speculative.verify import Case, Match, Rule, Verdict

if TYPE_CHECKING:
    from inference.grammar.matcher import Matcher
    from inference.native.model import Model
    from inference.requests import SamplingParams

IDLE = 4
"""Drafters that stay open while no request uses them."""


class Proposers:
    """The drafters at work for one engine, each opened by the first request that asks for it.

    Of those that no request uses, the `IDLE` latest stay open: whoever varies options must not fill
    the memory with what they opened.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._open: OrderedDict[Drafter, Proposer] = OrderedDict()
        self._records: WeakKeyDictionary[Proposer, Record] = WeakKeyDictionary()
        self._users: Counter[Drafter] = Counter()
        self._lock = threading.Lock()

    def begin(self, drafter: Drafter, start: Start, prompt: int) -> Speculation:
        """What drafts for a request with so many prompt tokens; raises DrafterInputError."""
        with self._lock:
            proposer = self._open.get(drafter)
            if proposer is None:
                proposer = self._open[drafter] = drafter.open(self._model)
            record = self._records.setdefault(proposer, Record())
            self._users[drafter] += 1
        try:
            leave = partial(self._leave, drafter)
            return Speculation(drafter, proposer, record, start, prompt, leave)
        except BaseException:
            self._leave(drafter)
            raise

    def _leave(self, drafter: Drafter) -> None:
        """One request fewer; what is idle longest makes room."""
        with self._lock:
            self._users[drafter] -= 1
            if self._users[drafter]:
                return
            del self._users[drafter]
            if drafter in self._open:
                self._open.move_to_end(drafter)
            idle = [one for one in self._open if not self._users[one]]
            for one in idle[: max(0, len(idle) - IDLE)]:
                self._open.pop(one).close()

    def close(self) -> None:
        """Free what drafters hold."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


class Speculation:
    """Drafts of one request; `drafted` and `accepted` count tokens, `seconds` its drafting.

    `cut` counts drafts that the rest of a step's tokens bounded, `least` is the tightest bound.
    `gave` is what its last step with a draft produced, `hidden` the state that the last token was
    drawn from; `raw` and `processed` are logits by node while a draft is verified.
    """

    def __init__(
        self,
        drafter: Drafter,
        proposer: Proposer,
        record: Record,
        start: Start,
        prompt: int,
        leave: Callable[[], object],
    ) -> None:
        self.drafter = drafter
        self.proposer = proposer
        self.rule: Rule = drafter.rule
        self.drafted = self.accepted = self.rounds = 0
        self.gave = 0
        self.cut, self.least = 0, MOST
        self.seconds = 0.0
        self.hidden: torch.Tensor | None = None
        self.switch = Switch(record)
        self.raw: dict[int, torch.Tensor] = {}
        self.processed: dict[int, torch.Tensor] = {}
        # Where tokens depend on what was drafted, time must not decide what is.
        same = self.rule.name == Match.name or start.sampling.temperature == 0.0
        self._may_pause = drafter.adaptive and self.rule.lossless and same
        self._reach = Reach() if self._may_pause and drafter.reaches else None
        self._deepest = 0
        self._seed = start.seed
        self._sampling = start.sampling
        self._state = proposer.begin(start)
        self._told = prompt
        self._kept: tuple[int, ...] = ()
        self._proposal: Proposal | None = None
        self._leave = leave
        self._ended = False

    def turn(self, row: Row, room: int, depth: int, *, welcome: bool) -> Turn | None:
        """What the proposer is told before it drafts for a row; None where it is not to draft.

        At most `room` tokens, none deeper than `depth`. Unless a draft is `welcome` to the others,
        who may pause does.
        """
        if depth < 1 or (self._may_pause and not self.switch.on(welcome)):
            return None
        if room < 1:
            self._bounded(room)
            return None
        if self._reach is not None:
            room = min(room, self._reach.most)
        fresh = len(row.ids) - self._told
        kept, self._kept, self._told = self._kept, (), len(row.ids)
        ids = row.ids
        return Turn(self._state, ids, row.prompt, fresh, kept, room, depth, self.hidden)

    def propose(self, row: Row, proposal: Proposal | None, turn: Turn) -> None:
        """Give a row the draft that was proposed, as far as it keeps to the turn's bounds."""
        self._proposal = proposal
        if proposal is None or not proposal.draft.ids:
            return
        reach = MOST if self._reach is None else self._reach.most
        if turn.room < reach and len(proposal.draft.ids) >= turn.room:
            self._bounded(turn.room)
        draft = proposal.draft.first(turn.room)
        deep = [at for at, far in enumerate(draft.depths()) if far > turn.depth]
        # Parents come before children, so that the tokens before the first deep one are a tree.
        row.draft = draft.first(deep[0]) if deep else draft
        self._deepest = max(row.draft.depths(), default=0)

    def _bounded(self, room: int) -> None:
        """A step had room for no more of a draft."""
        self.cut += 1
        self.least = min(self.least, room)

    def verify(
        self,
        row: Row,
        logits: torch.Tensor,
        params: SamplingParams,
        matcher: Matcher | None,
    ) -> Verdict:
        """What the rule accepts of a row's draft; `logits` [1 + draft, vocabulary]."""
        draft, proposal = row.draft, self._proposal
        assert draft is not None and proposal is not None
        self.raw, self.processed = {}, {}
        case = Case(
            draft,
            self._target(row.ids, draft, logits, params, matcher),
            params.temperature == 0.0,
            self._seed,
            len(row.ids),
            None if proposal.drawn is None else proposal.drawn[: len(draft.ids)],
        )
        return self.rule.verify(case)

    def settled(self, drafted: int, path: Sequence[int]) -> None:
        """So many tokens had been drafted, of which those of `path` stay."""
        self.drafted += drafted
        self.accepted += len(path)
        self.rounds += 1
        self._kept = tuple(path)
        if self._reach is not None:
            self._reach.settled(len(path), whole=len(path) == self._deepest)
        self.gave = len(path) + 1
        self.raw, self.processed = {}, {}

    def notes(self) -> dict[str, object]:
        """What the result says about its drafter."""
        found: dict[str, object] = {
            "name": name_of(self.drafter),
            "options": self.drafter.model_dump(mode="json"),
            "rule": self.rule.name,
            "lossless": self.rule.lossless,
            **self.rule.notes(),
            "rounds": self.rounds,
            "seconds": round(self.seconds, 6),
        }
        if self.switch.suspended:
            found["suspended"] = self.switch.suspended
        if self.cut:
            found["cut"] = {"drafts": self.cut, "to": self.least}
        return {**found, **self.proposer.notes(self._state)}

    def end(self) -> None:
        """The request left."""
        if not self._ended:
            self._ended = True
            self.switch.end()
            try:
                self.proposer.end(self._state)
            finally:
                self._leave()

    def _target(
        self,
        ids: Sequence[int],
        draft: Draft,
        logits: torch.Tensor,
        params: SamplingParams,
        matcher: Matcher | None,
    ) -> Callable[[int, Sequence[int]], torch.Tensor]:
        """What the target says after a node, computed where a rule asks for it."""
        masks = None
        if matcher is not None:
            matcher.require_continuation()
            parents = [-1, *(parent + 1 for parent in draft.parents)]
            masks = matcher.tree_masks(parents, [0, *draft.ids])

        def target(node: int, path: Sequence[int]) -> torch.Tensor:
            if node not in self.processed:
                raw = logits[node + 1]
                require_sound(raw)
                row = raw if masks is None else masks.row(raw, node + 1)
                seen = [*ids, *(draft.ids[at] for at in path)]
                self.raw[node], self.processed[node] = raw, process(row, params, seen)
            return self.processed[node]

        return target


class Drafting:
    """Lets the requests of a step loop draft between two steps, and tells whether that pays."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._costs = Costs()
        self._drafting = 0.0  # seconds it took before the step that is under way
        self._plain: float | None = None  # what the latest step would have taken without drafts

    def stepped(
        self,
        rows: Sequence[int],
        drafted: Sequence[tuple[Speculation, int]],
        waited: Sequence[Speculation],
        seconds: float,
    ) -> None:
        """A step over `rows` of each sequence took `seconds`.

        Each of `drafted` had a draft in it and was given so many tokens; those that `waited` had
        none. Steps that also read prompts tell nothing, and are not given.
        """
        self._costs.add(sum(rows), seconds)
        self._plain = self._costs.seconds(len(rows))
        for speculation, tokens in drafted:
            speculation.switch.drafted(tokens, seconds + self._drafting, self._plain)
        longer = seconds - self._plain if drafted and self._plain else 0.0
        for speculation in waited:
            speculation.switch.waited(longer + self._drafting)

    def propose(
        self, asking: Sequence[tuple[Speculation, Row, int]], running: int
    ) -> list[tuple[Row, Exception]]:
        """Drafts for rows that may still produce so many tokens, beside all that run.

        Gives the rows whose proposer broke: whose draft it was cannot be told, and it may hold
        anything.
        """
        self._drafting = 0.0
        broken: list[tuple[Row, Exception]] = []
        if not asking:
            return broken
        room = min(MOST, max(0, self._budget - running) // len(asking))
        turns: dict[int, list[tuple[Speculation, Row, Turn]]] = {}
        welcome = all(speculation.switch.patient for speculation, _, _ in asking)
        for speculation, row, left in asking:
            turn = speculation.turn(row, room, left - 1, welcome=welcome)
            if turn is not None:
                turns.setdefault(id(speculation.proposer), []).append((speculation, row, turn))
        for several in turns.values():
            began = time.perf_counter()
            try:
                found = several[0][0].proposer.propose([turn for _, _, turn in several])
                seconds = time.perf_counter() - began
                self._drafting += seconds
                for (speculation, row, turn), proposal in zip(several, found, strict=True):
                    speculation.seconds += seconds / len(several)
                    speculation.propose(row, proposal, turn)
                    if row.draft is None:  # no step with a draft will tell what this has cost
                        speculation.switch.missed(seconds, self._plain)
            except Exception as error:
                broken += [(row, error) for _, row, _ in several]
        return broken
