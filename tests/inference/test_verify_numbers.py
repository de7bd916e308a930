"""What rules ask for: numbers that share nothing, nodes on the walked path only, live tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from inference import SamplingParams
from inference.native.sampling import choose, draw, process, uniform
from inference.native.sequence import Draft
from inference.speculative.base import MOST
from inference.speculative.verify import (
    DRAFTING,
    PLAIN,
    REST,
    RULES,
    TRIALS,
    Case,
    Match,
    RapidPaper,
    Rejection,
    Rule,
    Tilted,
    Typical,
    Verdict,
)
from tests.inference.chance import chi_square
from tests.inference.exact import World

EVERY: list[Rule] = [
    Match(),
    Rejection(),
    Typical(),
    Tilted(5.0),
    Tilted(5.0, "repo"),
    RapidPaper(5.0),
    RapidPaper(5.0, "repo"),
]
SEEDS = 10_000


def test_lanes_do_not_know_of_each_other() -> None:
    lanes = (PLAIN, REST, TRIALS, TRIALS + 1, DRAFTING)
    numbers = np.array([[uniform(seed, 9, lane) for lane in lanes] for seed in range(SEEDS)])
    table = (numbers * 8).astype(int)
    for a in range(len(lanes)):
        for b in range(a):
            pairs = np.bincount(table[:, a] * 8 + table[:, b], minlength=64)
            statistic, bound = chi_square(pairs, torch.full((64,), 1 / 64))
            assert statistic < bound, (lanes[a], lanes[b])


def test_no_sibling_is_tried_in_a_lane_of_the_drafter() -> None:
    assert len({PLAIN, REST, *range(TRIALS, TRIALS + MOST)}) == MOST + 2
    assert TRIALS + MOST <= DRAFTING


def first(seed: int, world: World, rule: Rule, lane: int) -> int:
    """The first token of a step over one drafted token that was drawn in `lane`."""
    q = torch.from_numpy(world.q(()))
    token = draw(q, uniform(seed, 4, lane))
    case = Case(Draft((token,), (-1,)), lambda _, __: world.logits(()), False, seed, 4, q[None])
    verdict = rule.verify(case)
    return token if verdict.path else verdict.token


def test_the_numbers_of_the_engine_give_the_target_and_would_not_if_a_lane_were_shared() -> None:
    world = World(8)
    p = torch.from_numpy(world.p(()))
    for lane, fine in ((DRAFTING, True), (TRIALS, False)):
        found = np.bincount(
            [first(seed, world, Rejection(), lane) for seed in range(SEEDS)], minlength=world.size
        )
        statistic, bound = chi_square(found, p)
        assert (statistic < bound) == fine


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_greedy_rules_look_at_nodes_of_the_walked_path_only(rule: Rule) -> None:
    truth = (3, 1, 4, 1, 5)
    ids, parents, line = [], [], -1
    for token in truth:  # twelve more siblings beside every node of the true path
        for other in range(12):
            ids.append(100 + other)
            parents.append(line)
        if isinstance(rule, Tilted):  # which knows chains only
            ids, parents = ids[:-12], parents[:-12]
        ids.append(token)
        parents.append(line)
        line = len(ids) - 1
    ids, parents = ids[:MOST], parents[:MOST]
    asked: list[int] = []

    def logits(node: int, path: Sequence[int]) -> torch.Tensor:
        asked.append(node)
        return torch.nn.functional.one_hot(torch.tensor((*truth, 9)[len(path)]), 120).float() * 50

    rows = torch.nn.functional.one_hot(torch.tensor(ids), 120).double()
    verdict = rule.verify(Case(Draft(tuple(ids), tuple(parents)), logits, True, 0, 0, rows))
    assert [ids[node] for node in verdict.path] == list(truth[: len(verdict.path)])
    assert list(dict.fromkeys(asked)) == [-1, *verdict.path]  # asking again costs nothing
    assert len(verdict.path) >= 4


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_no_rule_says_what_a_grammar_forbids(rule: Rule, greedy: bool) -> None:
    """Logits are -inf outside the grammar; drafters need not know it."""
    chance = random.Random(5)
    for seed in range(150):
        world = World(seed, zeros=chance.randint(1, 6))
        chain = isinstance(rule, Tilted)
        parents = tuple(at - 1 if chain else chance.randint(-1, at - 1) for at in range(5))
        rows = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(8), 5))
        ids = tuple(draw(row, chance.random()) for row in rows)

        def logits(
            node: int, path: Sequence[int], world: World = world, ids: tuple[int, ...] = ids
        ) -> torch.Tensor:
            return world.logits(tuple(ids[at] for at in path))

        verdict = rule.verify(Case(Draft(ids, parents), logits, greedy, seed, 0, rows))
        said: tuple[int, ...] = ()
        for token in (*(ids[at] for at in verdict.path), verdict.token):
            assert world.p(said)[token] > 0
            said = (*said, token)


@pytest.mark.parametrize("rule", EVERY, ids=repr)
@pytest.mark.parametrize("greedy", [True, False])
def test_one_live_token_is_said_whatever_was_drafted(rule: Rule, greedy: bool) -> None:
    only = torch.full((8,), -torch.inf)
    only[6] = 0.3
    rows = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(8), 3))
    case = Case(Draft((6, 6, 2), (-1, 0, 1)), lambda _, __: only, greedy, 1, 0, rows)
    verdict = rule.verify(case)
    said = [case.draft.ids[at] for at in verdict.path] + [verdict.token]
    assert set(said) == {6}
    if not isinstance(rule, Rejection | Tilted) or greedy:
        assert verdict == Verdict((0, 1), 6)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0, repetition_penalty=1.7),
        SamplingParams(temperature=0.9, repetition_penalty=1.7, top_p=0.9),
    ],
    ids=["greedy", "sampled"],
)
def test_match_says_what_plain_decoding_says_with_a_penalty_that_grows_along_the_path(
    sampling: SamplingParams,
) -> None:
    size, seed, prompt, length = 12, 31, [1, 2], 60
    raw = torch.from_numpy(np.random.default_rng(6).normal(0, 2, (size, size)))
    plain = list(prompt)
    while len(plain) < length:
        plain.append(choose(raw[plain[-1]], sampling, seed, len(plain), plain))
    ids, chance, steps = list(prompt), random.Random(2), 0
    while len(ids) < length:
        draft = around(plain[len(ids) :], size, chance)

        def logits(node: int, path: Sequence[int], draft: Draft = draft) -> torch.Tensor:
            seen = [*ids, *(draft.ids[at] for at in path)]  # noqa: B023  used within the step
            return process(raw[seen[-1]], sampling, seen)

        case = Case(draft, logits, sampling.temperature == 0, seed, len(ids))
        verdict = Match().verify(case)
        ids += [*(draft.ids[at] for at in verdict.path), verdict.token]
        steps += 1
    assert ids[:length] == plain
    assert steps < (length - len(prompt)) * 0.7, "the walk never went on"


def around(truth: Sequence[int], size: int, chance: random.Random) -> Draft:
    """A tree of eight tokens with a part of the truth as one of its paths."""
    ids, parents, line, deep = [], [], -1, 0
    while len(ids) < 8:
        if deep < len(truth) and chance.random() < 0.5:
            ids.append(truth[deep])
            parents.append(line)
            line, deep = len(ids) - 1, deep + 1
        else:
            parents.append(chance.randint(-1, len(ids) - 1))
            ids.append(chance.randrange(size))
    return Draft(tuple(ids), tuple(parents))


@pytest.mark.parametrize("rule", [Rejection(), Tilted(0.0), RapidPaper(0.0)], ids=repr)
def test_a_token_its_row_could_not_give_is_a_defect_of_the_drafter(rule: Rule) -> None:
    row = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    case = Case(Draft((2,), (-1,)), lambda _, __: torch.zeros(3), False, 0, 0, row)
    with pytest.raises(AssertionError, match="draft token 0 was drawn with a probability of 0"):
        rule.verify(case)


@pytest.mark.parametrize("rule", [Rejection(), Tilted(0.0), RapidPaper(0.0)], ids=repr)
def test_rows_that_equal_the_target_are_always_accepted(rule: Rule) -> None:
    world = World(4, zeros=2)
    for seed in range(200):
        token = draw(torch.from_numpy(world.p(())), uniform(seed, 0, DRAFTING))
        # Rounded as another order of the same sums would round.
        row = torch.from_numpy(world.p(()) * (1 + 1e-16 * (seed % 7 - 3)))[None]
        case = Case(Draft((token,), (-1,)), lambda _, __: world.logits(()), False, seed, 0, row)
        assert rule.verify(case).path == (0,)


def test_drafts_that_were_not_drawn_are_matched() -> None:
    world = World(2)
    for seed in range(50):
        draft = Draft((1, 2, 3), (-1, -1, 0))

        def says(node: int, path: Sequence[int], draft: Draft = draft) -> torch.Tensor:
            return world.logits(tuple(draft.ids[at] for at in path))

        case = Case(draft, says, False, seed, 0)
        assert Rejection().verify(case) == Match().verify(case)


def test_the_table_holds_every_rule_and_says_which_are_lossless() -> None:
    assert {rule.name for rule in EVERY} == set(RULES)
    kept = {rule.name for rule in EVERY if rule.lossless}
    assert kept == {"match", "rejection"}
    assert Tilted(0.0).lossless and RapidPaper(0.0).lossless
    assert Tilted(2.0, "repo").notes() == {"eta": 2.0, "tail": "repo", "factor": 0.1}
