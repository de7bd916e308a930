"""Lookahead: trees of what followed the last tokens in prompt, references and output."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from inference.errors import DrafterInputError
from inference.speculative.base import MOST, Drafter, Proposal, Proposer, Start, Turn
from inference.speculative.branches import Shape, Trie
from inference.speculative.trie import Forest, Stream, Texts

if TYPE_CHECKING:
    from inference.native.model import Model

CPU_IDS, GPU_IDS = 32, 64
"""Tokens per pass where `decoding_length` is left out: a CPU pays for rows, a GPU hardly."""

CPU_BRANCH, GPU_BRANCH = 24, 12
"""Longest branch where `branch_length` is left out; the paper's is 12."""


class Lookahead(Drafter):
    """Drafts a tree of what followed the last tokens in prompt, references and output.

    Every window of these texts is counted in a trie, by slot; a count in the prompt weighs most,
    one in the references less, one in the output least. Nothing is trained or computed by a model.
    Source: Zhao et al. 2023, Lookahead (arXiv 2312.12728, KDD 2024), after its code; of the paper
    itself only the abstract was read, so that its tables and ablations are not verified.

    Deviations. A text is split at every end token, not cut at the first, since chat templates end
    each turn with one. The output is counted token by token, not once a window is complete, so that
    the latest tokens are found too. Prompt and references are looked up as texts, with the counts
    that their tries would have: pruning never takes them, of a query the latest 1024 occurrences
    count, and a node whose counts are all 0 does not exist. References are a slot of our own.
    Output quotas take only nodes that were emitted. Pruning goes on until a tree fits, closes the
    windows that are open, and `max_nodes` bounds a whole forest, where the code bounds each tree.
    Queries are up to 4 tokens long, 2 in the code: the fewer tokens a tree has, the more the
    likeliest matter. `one` weighs as `hier` does; the code has input and output swapped there. What
    a request emitted in its last step does not reach a shared trie. A draft is no longer than those
    before were accepted (`inference.speculative.reach`), where the code always fills it, and on a
    CPU a branch may be twice as long as in the paper.
    """

    source: ClassVar[str] = "Zhao et al. 2023, arXiv 2312.12728"
    reaches: ClassVar[bool] = True

    decoding_length: int | None = Field(
        None,
        ge=2,
        le=MOST,
        description=f"tokens per pass, the last one included; {CPU_IDS}, on a GPU {GPU_IDS}",
    )
    branch_length: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description=f"longest branch of a draft; {CPU_BRANCH}, on a GPU {GPU_BRANCH}",
    )
    max_query_length: int = Field(4, ge=1, le=16, description="longest suffix that is looked up")
    mode: Literal["hier", "par", "one"] = Field(
        "hier", description="a tree, its branches side by side, or the likeliest chain alone"
    )
    split: bool = Field(True, description="share decoding_length among the requests of a step")
    output_weight: float = Field(1e-4, ge=0, le=0.5, description="of a count in the output")
    reference_weight: float = Field(1e-2, ge=0, le=1, description="of a count in the references")
    stop_words: str | None = Field(
        None, pattern=r"^[^,]*$", description="words between spaces that alone are no query"
    )
    shared: bool = Field(False, description="remember what was emitted for others of the tenant")
    max_output_nodes: int = Field(512, ge=1, description="nodes of one tree of the output")
    max_nodes: int = Field(65536, ge=64, description="nodes of all trees of the output together")
    max_tenants: int = Field(16, ge=1, description="shared tries that are kept, the latest used")

    @model_validator(mode="after")
    def _weights_in_order(self) -> Lookahead:
        low, high = self.output_weight, 1 - self.output_weight
        if not low <= self.reference_weight <= high:
            raise ValueError(
                f"have reference_weight={self.reference_weight} outside of output_weight to "
                f"1 - output_weight; give {low} to {high}"
            )
        return self

    def open(self, model: Model) -> Proposer:
        """Nothing is loaded; raises DrafterInputError for a stop word that is not one token."""
        cuda = model.device.type == "cuda"
        ids = self.decoding_length or (GPU_IDS if cuda else CPU_IDS)
        branch = self.branch_length or (GPU_BRANCH if cuda else CPU_BRANCH)
        stops = _tokens_of((self.stop_words or "").split(), model.tokenizer)
        return _Tries(self, ids, branch, model.stop_ids, stops)


def _tokens_of(words: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """The tokens that are one of `words`, alone or behind a space."""
    found: set[int] = set()
    for word in words:
        spelt = [tokenizer.encode(text, add_special_tokens=False) for text in (word, f" {word}")]
        single = {ids[0] for ids in spelt if len(ids) == 1}
        if not single:
            raise DrafterInputError(
                f"drafter 'lookahead': stop word {word!r} of option stop_words is no single token "
                "of this model; leave it out",
                "stop_words",
            )
        found |= single
    return frozenset(found)


@dataclass(slots=True)
class _State:
    """A request: what it may copy from, and how much of its output was counted."""

    trie: Trie
    stream: Stream
    tenant: str
    references: int
    read: int = 0
    turns: int = 0
    empty: int = 0


@dataclass(slots=True)
class _Shelf:
    """A tenant's forest and the requests that use it."""

    forest: Forest
    users: int = 0


@dataclass(slots=True)
class _Shelves:
    """Shared forests by tenant; idle ones beyond `most` go, the longest unused first."""

    most: int
    _lock: Lock = field(default_factory=Lock)
    _shelves: OrderedDict[str, _Shelf] = field(default_factory=OrderedDict)

    @contextmanager
    def _tidied(self) -> Iterator[OrderedDict[str, _Shelf]]:
        with self._lock:
            yield self._shelves
            idle = [tenant for tenant, shelf in self._shelves.items() if not shelf.users]
            for tenant in idle[: max(len(self._shelves) - self.most, 0)]:
                del self._shelves[tenant]

    def take(self, tenant: str, fresh: Forest) -> Forest:
        """The tenant's forest, `fresh` if there is none yet."""
        with self._tidied() as shelves:
            shelf = shelves.setdefault(tenant, _Shelf(fresh))
            shelves.move_to_end(tenant)
            shelf.users += 1
            return shelf.forest

    def give_back(self, tenant: str) -> None:
        """One request less uses it."""
        with self._tidied() as shelves:
            if tenant in shelves:  # not after all was cleared
                shelves[tenant].users -= 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._shelves.clear()


class _Tries(Proposer):
    """Texts are a request's own; a forest changes in the step thread only, shared or not."""

    def __init__(
        self,
        options: Lookahead,
        ids: int,
        branch: int,
        ends: frozenset[int],
        stops: frozenset[int],
    ) -> None:
        self._options = options
        self._ids, self._branch = ids, branch
        self._ends = ends
        self._stops = stops
        self._shelves = _Shelves(options.max_tenants)

    def begin(self, start: Start) -> _State:
        """Index prompt and references."""
        options = self._options
        prompt, references = Texts(self._ends), Texts(self._ends)
        prompt.put("prompt", start.prompt[1:])  # its first token is no root, as in the code
        for place, text in enumerate(start.references):
            references.put(place, text)
        forest = Forest(
            self._branch + options.max_query_length - 1,
            ends=self._ends,
            stops=self._stops,
            tree_nodes=options.max_output_nodes,
            nodes=options.max_nodes,
        )
        if options.shared:
            forest = self._shelves.take(start.tenant, forest)
        weight = options.output_weight
        slots = (
            (prompt, 1 - weight),
            (references, options.reference_weight),
            (forest, weight),
        )
        trie = Trie(slots, options.max_query_length, self._stops)
        return _State(trie, Stream(forest), start.tenant, len(start.references))

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """Count what was emitted since, then look the last tokens up."""
        ids = max(self._ids // len(turns), 2) if self._options.split and turns else self._ids
        return [self._one(turn, ids) for turn in turns]

    def _one(self, turn: Turn, ids: int) -> Proposal | None:
        state: _State = turn.state
        options = self._options
        emitted = turn.ids[turn.prompt + state.read :]
        state.read += len(emitted)
        state.stream.put(emitted)
        state.turns += 1
        depth = min(self._branch, turn.depth)
        most = min(ids, turn.room + 1)
        shape = Shape(most, depth, most // 2)
        query = turn.ids[-options.max_query_length :]
        draft = getattr(state.trie, options.mode)(query, shape)
        if not draft.ids:
            state.empty += 1
            return None
        return Proposal(draft)

    def end(self, state: _State) -> None:
        """Its texts go with the state; a shared forest keeps what was emitted."""
        if self._options.shared:
            self._shelves.give_back(state.tenant)

    def notes(self, state: _State) -> dict[str, object]:
        """How often nothing was found, and the fallback where that was always."""
        notes: dict[str, object] = {
            "references": state.references,
            "turns": state.turns,
            "empty": state.empty,
        }
        if state.turns and state.empty == state.turns:
            notes["fallback"] = "plain decoding: nothing that was read was found to go on"
        return notes

    def close(self) -> None:
        """Forget what was shared."""
        self._shelves.clear()
