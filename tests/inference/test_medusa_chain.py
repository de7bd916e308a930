"""A chain of Medusa's heads: each guess reads those before it, and the likeliest are drafted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference.errors import DrafterInputError
from inference.speculative import medusa_guess
from inference.speculative.choices import read_choices, spell_choices
from inference.speculative.medusa import NODES, Medusa
from inference.speculative.medusa_guess import WIDTH, Level, Likeliest
from tests.inference.spelt_chain import Spelt
from tests.inference.test_medusa import Tiny, chained, heads_of, turn


def test_a_chain_reads_the_tokens_guessed_before(tiny: Tiny, tmp_path: Path) -> None:
    """Against the formula: in a tree of fixed ranks every guess is the r-th behind its own path."""
    model = tiny()._model()
    folder = chained(tiny(), tmp_path)
    choices = read_choices("0 1 0.1 1.0 0.1.2 1.0.0 0.1.2.0 2")
    proposer = Medusa(heads=str(folder), choices=spell_choices(choices)).open(model)
    spelt = Spelt(folder, model)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(4))
    turns = [turn(one) for one in hidden]
    for state, proposal in zip(hidden, proposer.propose(turns), strict=True):
        assert proposal is not None
        for choice, line in zip(choices, proposal.draft.ancestors(), strict=True):
            *path, token = [proposal.draft.ids[at] for at in line]
            best = spelt.shares(state, [6, *path]).topk(10).indices.tolist()
            assert best[choice[-1]] == token
    (short,) = proposer.propose([turn(hidden[0], room=4, depth=2)])
    assert short is not None
    assert short.draft.parents == (-1, -1, 0, 1)


@pytest.mark.parametrize("nodes", [1, 5, 12, 40])
def test_a_chain_drafts_the_likeliest_nodes(
    tiny: Tiny, tmp_path: Path, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a search of its own over the same paths: children of the likeliest of each depth.

    With nothing taken for granted about a child but that it is no likelier than its parent.
    """
    monkeypatch.setattr(medusa_guess, "FOLLOWS", 1.0)
    model = tiny()._model()
    folder = chained(tiny(), tmp_path)
    proposer = Medusa(heads=str(folder), nodes=nodes).open(model)
    spelt = Spelt(folder, model)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))
    for room, depth in ((64, 64), (7, 2)):
        turns = [turn(one, room, depth) for one in hidden]
        for state, proposal in zip(hidden, proposer.propose(turns), strict=True):
            assert proposal is not None
            found = {
                tuple(proposal.draft.ids[at] for at in line) for line in proposal.draft.ancestors()
            }
            values: dict[tuple[int, ...], float] = {(): 0.0}
            open_: list[tuple[int, ...]] = [()]
            for _ in range(min(depth, 4)):
                new = {}
                for path in open_:
                    best = spelt.shares(state, [6, *path]).topk(10)
                    for share, token in zip(*(part.tolist() for part in best), strict=True):
                        new[*path, token] = values[path] + share
                values |= new
                open_ = sorted(new, key=lambda one: -new[one])[:WIDTH]
            del values[()]
            wanted = sorted(values, key=lambda one: -values[one])[: min(nodes, room)]
            assert found == set(wanted)


@pytest.mark.parametrize(("least", "done"), [(0.31, True), (0.29, False)])
def test_a_chain_ends_where_no_child_is_expected_in_the_draft(least: float, done: bool) -> None:
    """The best of the last depth is 0.5, so its children are taken to have at most 0.3."""
    shares = [[0.6, least], [0.5, 0.01]]
    levels = [Level(torch.zeros(1, 2), torch.tensor([one]).log()) for one in shares]
    assert Likeliest(3).done(levels) == done


def test_chains_that_do_not_fit_together(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()._model()
    narrow = heads_of(tiny(), tmp_path / "narrow", drawn=torch.zeros(2, 64, 64))
    with pytest.raises(DrafterInputError, match="shapes must be equal"):
        Medusa(heads=str(narrow)).open(model)
    loose = heads_of(tiny(), tmp_path / "loose", again=1)
    with pytest.raises(DrafterInputError, match="only a chain can"):
        Medusa(heads=str(loose)).open(model)
    deep = chained(tiny(), tmp_path / "deep")
    with pytest.raises(DrafterInputError, match=r"5 deep and .* guess 4 tokens"):
        Medusa(heads=str(deep), choices="0 0.0 0.0.0 0.0.0.0 0.0.0.0.0").open(model)


def test_nodes_left_out_are_four_or_all_choices(tiny: Tiny, tmp_path: Path) -> None:
    folder, model = chained(tiny(), tmp_path), tiny()._model()
    for choices, size in ((None, NODES), ("0 1 2 0.0 0.1 0.0.0", 6)):
        proposer = Medusa(heads=str(folder), choices=choices).open(model)
        (proposal,) = proposer.propose([turn(torch.ones(64))])
        assert proposal is not None
        assert len(proposal.draft.ids) == size
