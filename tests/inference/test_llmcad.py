"""LLMCad: which branch grows, when a tree is verified, and that no small model changes a token."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import DrafterInputError
from inference.native.model import Model
from inference.requests import SamplingParams
from inference.speculative import Proposal, Start, Turn, build, parse
from inference.speculative.llmcad import LLMCad
from inference.speculative.pacing import (
    CEILING,
    FLOOR,
    Branch,
    Judgement,
    Tree,
    Update,
    judge,
    neediest,
    updated,
)
from inference.speculative.writing import Writing
from tests.inference.tiny import checkpoint, network, tokenizer

RULES: tuple[Update, ...] = ("prose", "printed")
Folders = Callable[[int], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Tiny models by seed, with one tokenizer."""

    @lru_cache
    def get(seed: int) -> Path:
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        return checkpoint(folder, seed=seed, context=160, endless=True)

    return get


@lru_cache
def loaded(folder: Path) -> Model:
    return Model.load(folder, str(folder), "float32", "cpu")


def start(prompt: Sequence[int], **options: Any) -> Start:
    return Start(prompt, True, (), SamplingParams(), 0, "", **options)


def branches(*scores: float) -> list[Branch]:
    return [Branch(at, 0, math.log(score)) for at, score in enumerate(scores)]


def tree(*nodes: tuple[int, int, float]) -> Tree:
    """A tree of (token, parent, probability)."""
    found = Tree(64, 64)
    for token, parent, probability in nodes:
        found.ids.append(token)
        found.parents.append(parent)
        found.depths.append(found.depths[parent] + 1 if parent >= 0 else 1)
        above = found.scores[parent] if parent >= 0 else 0.0
        found.scores.append(above + math.log(probability))
    return found


def test_the_pacer_gives_every_branch_its_share() -> None:
    """Shares 0.5, 0.3 and 0.2: the trace by hand, from f(i) = M C_i / sum C - T_i."""
    three, trace = branches(0.05, 0.03, 0.02), ""
    for _ in range(10):
        one = neediest(three)
        assert one is not None
        trace += "ABC"[one.tip]
        one.given += 1
    assert trace == "ABCABACABA"
    three[0].closed = True
    one = neediest(three)
    assert one is three[1]
    assert neediest([replace(one, closed=True) for one in three]) is None


def test_a_tree_opens_branches_and_ends_where_it_should() -> None:
    grown = Tree(5, 3, frozenset({9}))
    grown.grow(grown.branches[0], [1, 2], [math.log(0.5), math.log(0.4)])
    first, second = grown.branches
    assert (first.tip, second.tip, first.given, second.given) == (0, 1, 1, 1)
    assert not grown.ripe(0.49) and grown.ripe(0.5) and grown.ripe(1) and not grown.ripe(0)
    grown.grow(second, [9], [math.log(0.9)])
    assert second.closed and not grown.ripe(0.1)  # the end token is not on the best branch
    grown.grow(first, [3], [math.log(0.1)])
    assert grown.best() is second and grown.ripe(0)
    grown.grow(first, [4, 5, 6], [-1.0, -2.0, -3.0])  # one place is left
    assert (grown.ids, grown.parents, grown.depths) == (
        [1, 2, 9, 3, 4],
        [-1, -1, 1, 0, 3],
        [1, 1, 2, 2, 3],
    )
    assert first.closed and grown.ripe(0)
    assert grown.order() == [0, 1, 2, 3, 4]


def test_a_verification_is_judged_by_the_best_matching_branch() -> None:
    drafted = tree((1, -1, 0.6), (2, -1, 0.4), (3, 0, 0.5), (4, 0, 0.3), (5, 2, 0.5), (6, 4, 0.5))
    assert judge(drafted, [2, 7]) == Judgement(1, 1)
    assert judge(drafted, [1]) is None  # the text ends where the tree goes on
    wrong = judge(drafted, [1, 9])
    assert wrong is not None and (wrong.right, wrong.length) == (1, 2)  # 1 4 is surer than 1 3 5 6
    drafted = tree((1, -1, 0.6), (3, 0, 0.5), (5, 1, 0.5), (6, 2, 0.5))
    wrong = judge(drafted, [1, 9])
    assert wrong is not None and (wrong.right, wrong.length) == (1, 4)
    assert wrong.behind == pytest.approx([0.15, 0.075])
    last = judge(drafted, [1, 3, 5, 7])
    assert last is not None and last.behind == pytest.approx([0.075])


@given(
    alpha=st.floats(FLOOR, CEILING),
    right=st.integers(0, 9),
    behind=st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_the_threshold_moves_as_its_rule_says(
    alpha: float, right: int, behind: list[float]
) -> None:
    wrong, fine = Judgement(right, 10, behind), Judgement(right, right)
    for rule in RULES:
        assert updated(alpha, fine, rule, 0.5) == max(alpha / 2, FLOOR)
    assert updated(alpha, wrong, "printed", 0.5) == pytest.approx(min((10 - right) / 10, CEILING))
    raised = updated(alpha, wrong, "prose", 0.5)
    assert alpha <= raised <= CEILING
    if raised < CEILING:
        assert raised * sum(behind) == pytest.approx(alpha * len(behind))
    assert updated(alpha, wrong, "fixed", 0.5) == updated(alpha, fine, "fixed", 0.5) == alpha
    assert updated(1.0, wrong, "prose", 0.5) == 1.0 and updated(0.0, fine, "prose", 0.5) == 0.0


class Host:
    """Plays the engine for a proposer: it keeps what a given text says, and one token more."""

    def __init__(self, proposer: Writing, prompts: Sequence[Sequence[int]]) -> None:
        self.proposer = proposer
        self.ids = [list(prompt) for prompt in prompts]
        self.prompts = [len(prompt) for prompt in prompts]
        self.states = [proposer.begin(start(prompt)) for prompt in prompts]
        self.kept: list[list[int]] = [[] for _ in prompts]
        self.fresh = [0] * len(prompts)

    def round(
        self, texts: Sequence[Sequence[int]], room: int = 64, depth: int = 64
    ) -> list[Proposal | None]:
        """One draft for every text, of which what each continues with is kept."""
        turns = [
            Turn(state, ids, prompt, fresh, kept, room, depth)
            for state, ids, prompt, fresh, kept in zip(
                self.states, self.ids, self.prompts, self.fresh, self.kept, strict=True
            )
        ]
        found = list(self.proposer.propose(turns))
        for at, (proposal, text) in enumerate(zip(found, texts, strict=True)):
            path, ids = [], self.ids[at]
            left = list(text[len(ids) - self.prompts[at] :])
            if proposal is not None:
                draft = proposal.draft
                for word in left:
                    tip = path[-1] if path else -1
                    below = [
                        n
                        for n, up in enumerate(draft.parents)
                        if up == tip and draft.ids[n] == word
                    ]
                    if not below:
                        break
                    path.append(below[0])
            self.kept[at], self.fresh[at] = path, len(path) + 1
            ids += left[: len(path) + 1]
        return found


def written(model: str, ids: Sequence[int], options: LLMCad, alpha: float) -> dict[Any, float]:
    """The sheet's steps 1 to 4 over a model without a cache: paths and their confidences."""
    found: dict[tuple[int, ...], float] = {}
    open_: list[tuple[tuple[int, ...], int, float]] = [((), 0, 1.0)]  # path, tokens, confidence
    while len(found) < options.nodes:
        total = sum(one[1] for one in open_)
        weight = sum(one[2] for one in open_)
        lacks = [
            total * c / weight - t if len(p) < options.depth else -math.inf for p, t, c in open_
        ]
        at = max(range(len(open_)), key=lambda n: (lacks[n], open_[n][2], -n))
        path, given_, confidence = open_[at]
        with torch.no_grad():
            logits = network(model)(torch.tensor([[*ids, *path]])).logits[0, -1]
        chances = logits.softmax(-1).sort(descending=True, stable=True)
        pairs = list(zip(chances.indices.tolist(), chances.values.tolist(), strict=True))
        added = [pairs[0], *(pair for pair in pairs[1:] if pair[1] > options.branch)]
        for n, (word, chance) in enumerate(added[: options.nodes - len(found)]):
            one = ((*path, word), given_ + 1 if n == 0 else 1, confidence * chance)
            found[one[0]] = one[2]
            if n:
                open_.append(one)
            else:
                open_[at] = one
        top = max(open_, key=lambda one: one[2])
        if top[2] <= alpha or len(top[0]) == options.depth:
            break
    return found


def paths(proposal: Proposal | None) -> dict[tuple[int, ...], int]:
    """Token paths of a proposal by their places."""
    assert proposal is not None
    draft = proposal.draft
    found = [tuple(draft.ids[one] for one in line) for line in draft.ancestors()]
    assert len(set(found)) == len(found)
    return {path: at for at, path in enumerate(found)}


@pytest.mark.parametrize("own", [True, False], ids=["whole", "early"])
def test_trees_are_those_of_a_model_without_a_cache(folders: Folders, own: bool) -> None:
    """Four requests at once, over rounds in which some drafts are right and some are not."""
    folder, draw = folders(1), random.Random(5)
    options = LLMCad(
        model=str(folder) if own else None,
        layers=None if own else 2,
        branch=0.15,
        alpha=1e-4,
        nodes=14,
        depth=6,
    )
    proposer = options.open(loaded(folders(0) if own else folder))
    assert isinstance(proposer, Writing)
    prompts = [[draw.randrange(4, 320) for _ in range(n)] for n in (1, 7, 20, 33)]
    host, sizes = Host(proposer, prompts), set()
    for _ in range(4):
        ids, texts = [list(one) for one in host.ids], []
        for prompt, one in zip(prompts, ids, strict=True):
            follow = written(str(folder), one, options, options.alpha)
            some = draw.choice([(), *follow])
            texts.append([*one[len(prompt) :], *some, draw.randrange(4, 320)])
        alphas = [state.alpha for state in host.states]
        found = host.round(texts)
        for at, proposal in enumerate(found):
            # The threshold moves in the turn that learns what became of the tree before.
            alphas[at] = host.states[at].alpha
            wanted = written(str(folder), ids[at], options, alphas[at])
            places = paths(proposal)
            assert places.keys() == wanted.keys()
            in_order = sorted(places, key=lambda path: places[path])
            assert all(wanted[one] >= wanted[two] * (1 - 1e-4) for one, two in pairwise(in_order))
            sizes.add(len(places))
    assert len(sizes) > 2
    for state in host.states:
        notes = proposer.notes(state)
        assert notes["provisional"] == "off, weights are resident"
        proposer.end(state)
    assert proposer._second.used_bytes == 0


def test_alpha_says_when_to_verify(folders: Folders) -> None:
    options = {"model": str(folders(1)), "update": "fixed", "nodes": 6, "depth": 6, "branch": 1.0}
    prompt = [5, 6, 7, 8]
    for alpha, size in ((1.0, 1), (0.0, 6)):
        proposer = LLMCad(alpha=alpha, **options).open(loaded(folders(0)))  # type: ignore[arg-type]
        assert isinstance(proposer, Writing)
        host = Host(proposer, [prompt])
        for n in range(3):
            (found,) = host.round([list(range(10, 11 + n))])
            assert found is not None and len(found.draft.ids) == size
            assert proposer.notes(host.states[0])["small_passes"] == size * (n + 1)
        (found,) = host.round([list(range(10, 14))], room=3)
        assert found is not None and len(found.draft.ids) == min(size, 3)
        (found,) = host.round([list(range(10, 15))], depth=2)
        assert found is not None and max(found.draft.depths()) == min(size, 2)


def test_notes_count_what_was_judged(folders: Folders) -> None:
    folder = str(folders(0))
    options = LLMCad(model=folder, nodes=4, depth=4, alpha=0.5, update="prose", branch=1.0)
    proposer = options.open(loaded(folders(0)))
    assert isinstance(proposer, Writing)
    with torch.no_grad():
        text = network(folder).generate(torch.tensor([[5, 6, 7]]), max_new_tokens=30)[0, 3:]
    host = Host(proposer, [[5, 6, 7]])
    alpha = options.alpha
    proposals = []
    while len(host.ids[0]) < 30:
        proposals += host.round([text.tolist()])
        assert host.states[0].alpha == alpha
        alpha = alpha / 2  # the model drafts for itself: nothing is ever wrong
        alpha = max(alpha, FLOOR)
    host.round([text.tolist()])
    notes = proposer.notes(host.states[0])
    drafted = sum(len(one.draft.ids) for one in proposals if one is not None)
    assert notes["nodes"] == {"drafted": drafted, "accepted": drafted, "wasted": 0}
    emitted = len(proposals) + drafted
    assert notes["target_calls_per_token"] == pytest.approx((len(proposals) + 1) / emitted)


def test_an_early_exit_shares_the_weights(folders: Folders) -> None:
    model = loaded(folders(0))
    early = model.early(1)
    assert model.lean is not None and early.lean is not None
    assert early.lean.layers[0] is model.lean.layers[0] and len(model.lean.layers) == 2
    proposer = LLMCad(layers=1).open(model)
    assert isinstance(proposer, Writing)
    (found,) = proposer._second.step([proposer._second.admit([5, 6, 7])])
    whole = network(str(folders(0)))
    with torch.no_grad():
        hidden = whole(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states[1]
        wanted = whole.lm_head(whole.model.norm(hidden))[0, -1]
    assert found is not None
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-3)


def test_a_small_model_that_does_not_fit_is_refused(folders: Folders, tmp_path: Path) -> None:
    model = loaded(folders(0))
    words = tokenizer()
    words.add_tokens(["<|other|>"])
    words.save_pretrained(checkpoint(tmp_path / "other", seed=1))
    with pytest.raises(DrafterInputError, match=r"another vocabulary.*<\|other\|>"):
        LLMCad(model=str(tmp_path / "other")).open(model)
    with pytest.raises(DrafterInputError, match=r"first 3 layers.* has 2; use layers=1"):
        LLMCad(layers=3).open(model)
    plain = Model.load(folders(0), "plain", "float32", "cpu", path="transformers")
    with pytest.raises(DrafterInputError, match="no early exit here"):
        LLMCad().open(plain)
    with pytest.raises(DrafterInputError, match="give one of them"):
        parse("llmcad:model=default,layers=3")
    for wrong in ("nodes=0", "nodes=65", "depth=0", "alpha=2", "layers=0", "update=other"):
        with pytest.raises(DrafterInputError, match=wrong.split("=")[0]):
            parse(f"llmcad:{wrong}")
    assert build({"use": "llmcad", "layers": 1, "alpha": 0.5}) == LLMCad(layers=1, alpha=0.5)
