"""A chain of Medusa's heads: each guess reads those before it, and the likeliest are drafted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference import SamplingParams
from inference.errors import DrafterInputError
from inference.speculative import medusa_guess
from inference.speculative.base import Start
from inference.speculative.choices import read_choices, spell_choices
from inference.speculative.followers import LATEST, ORDER, Followers
from inference.speculative.medusa import COPIED, NODES, Medusa
from inference.speculative.medusa_guess import DEEPEST, WIDTH, Level, Likeliest
from tests.inference.spelt_chain import Spelt, agreement
from tests.inference.test_medusa import Tiny, chained, heads_of, turn

START = Start([], True, [], SamplingParams(), 0, "")


def test_a_chain_reads_the_tokens_guessed_before(tiny: Tiny, tmp_path: Path) -> None:
    """Against the formula: in a tree of fixed ranks every guess is the r-th behind its own path."""
    model = tiny()._model()
    folder = chained(tiny(), tmp_path)
    choices = read_choices("0 1 0.1 1.0 0.1.2 1.0.0 0.1.2.0 2")
    proposer = Medusa(heads=str(folder), choices=spell_choices(choices), context=False).open(model)
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
    proposer = Medusa(heads=str(folder), nodes=nodes, context=False).open(model)
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


@pytest.mark.parametrize("all_tokens", [True, False])
def test_what_followed_the_same_tokens_before_is_a_likelier_guess(
    tiny: Tiny, tmp_path: Path, all_tokens: bool
) -> None:
    """Against the formula: the best behind every path, tokens that heads do not guess among them.

    The drafts of two requests whose texts differ, so that neither may see the other's.
    """
    model = tiny()._model()
    some = None if all_tokens else torch.arange(100, 160)
    folder = chained(tiny(), tmp_path, tokens=some)
    choices = read_choices("0 1 2 3 0.0 0.1 1.0 0.0.0 0.1.2")
    proposer = Medusa(heads=str(folder), choices=spell_choices(choices)).open(model)
    spelt = Spelt(folder, model)
    hidden = 0.2 * torch.randn(2, 64, generator=torch.Generator().manual_seed(6))
    texts = [[5, 6, 7, 8, 5, 6, 9, 120, 7, 8, 5, 6], [6, 150, 6, 201, 6, 150, 6]]
    turns = [
        replace(turn(one), ids=text, state=proposer.begin(START))
        for one, text in zip(hidden, texts, strict=True)
    ]
    for state, text, proposal in zip(hidden, texts, proposer.propose(turns), strict=True):
        assert proposal is not None
        for choice, line in zip(choices, proposal.draft.ancestors(), strict=True):
            *path, token = [proposal.draft.ids[at] for at in line]
            best = spelt.shares(state, [6, *path], text).topk(10).indices.tolist()
            assert best[choice[-1]] == token
        assert set(proposal.draft.ids) & set(text)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 30), st.lists(st.integers(0, 3)))
def test_followers_are_those_of_the_longest_runs(
    text: list[int], read: int, path: list[int]
) -> None:
    """However the text is read; against a search through all of it."""
    followers = Followers()
    followers.read(text[:read])
    followers.read(text)
    assert followers.behind([9, *path]) == agreement(text, [9] * ORDER + path)


def test_texts_given_along_count_each_by_itself() -> None:
    followers = Followers([[1, 2, 3], [3, 4]])
    followers.read([7, 1, 2])
    assert followers.behind([1, 2]) == {3: 2}
    assert followers.behind([3]) == {4: 1}


def test_followers_that_were_seen_long_ago_are_forgotten() -> None:
    followers = Followers()
    followers.read([token for other in range(50) for token in (1, 100 + other)])
    assert list(followers.behind([1])) == list(range(150 - LATEST, 150))


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 12))
def test_runs_that_were_seen_long_ago_are_forgotten(text: list[int], most: int) -> None:
    followers = Followers(most=most)
    followers.read(text)
    latest: dict[tuple[int, ...], int] = {}
    for at in range(1, len(text)):
        for length in range(min(ORDER, at), 0, -1):
            run = tuple(text[at - length : at])
            latest.pop(run, None)
            latest[run] = length
    kept = list(latest)[-most:]
    for run, length in latest.items():
        assert (length in followers.behind(run).values()) == (run in kept)


def test_guesses_of_a_small_share_are_not_drafted(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()._model()
    folder = chained(tiny(), tmp_path, scale=0.0)
    hidden = 0.2 * torch.randn(64, generator=torch.Generator().manual_seed(7))
    text = [5, 6, 7, 8] * 4 + [5, 6]
    drafts = []
    for context in (True, False):
        proposer = Medusa(heads=str(folder), nodes=12, context=context, copies=0).open(model)
        (proposal,) = proposer.propose(
            [replace(turn(hidden), ids=text, state=proposer.begin(START))]
        )
        assert proposal is not None
        drafts.append(proposal.draft)
    assert drafts[0].ids == (7, 8, 5, 6, 7, 8)
    assert len(drafts[1].ids) == 12


@pytest.mark.parametrize(
    ("copies", "room", "depth", "more"),
    [(0, 64, 64, 0), (9, 64, 64, 9), (9, 10, 64, 2), (9, 64, 12, 4)],
)
def test_the_likeliest_path_goes_on_as_the_text_did(
    tiny: Tiny,
    tmp_path: Path,
    copies: int,
    room: int,
    depth: int,
    more: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(medusa_guess, "AGREES", 20.0)  # a copy is all but certain
    model = tiny()._model()
    folder = chained(tiny(), tmp_path, scale=0.0)
    hidden = 0.2 * torch.randn(64, generator=torch.Generator().manual_seed(7))
    text = [5, 6, 7, 8] * 4 + [5, 6]
    proposer = Medusa(heads=str(folder), nodes=12, copies=copies).open(model)
    given = replace(turn(hidden, room=room, depth=depth), ids=text, state=proposer.begin(START))
    (proposal,) = proposer.propose([given])
    assert proposal is not None
    lines = [[proposal.draft.ids[at] for at in line] for line in proposal.draft.ancestors()]
    assert max(lines, key=len) == ([7, 8, 5, 6] * 5)[: DEEPEST + more]
    assert len(proposal.draft.ids) <= room


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=5))
def test_a_copy_goes_on_as_the_latest_time(text: list[int], path: list[int]) -> None:
    followers = Followers()
    followers.read(text)
    found = followers.copied(path, 6)
    assert len(found) <= 6
    whole = [*path, *found]
    for at in range(len(path), len(whole)):
        places = [
            end
            for end in range(ORDER, len(text))
            if text[end - ORDER : end] == whole[at - ORDER : at]
        ]
        assert text[places[-1]] == whole[at]
    if len(found) < 6:
        ends = [text[end - ORDER : end] for end in range(ORDER, len(text))]
        assert len(whole) < ORDER or whole[-ORDER:] not in ends


def test_heads_side_by_side_know_no_path(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DrafterInputError, match="guess side by side"):
        Medusa(heads=str(heads_of(tiny(), tmp_path)), context=True).open(tiny()._model())


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


def test_nodes_left_out_are_eight_or_four_or_all_choices(tiny: Tiny, tmp_path: Path) -> None:
    folder, model = chained(tiny(), tmp_path), tiny()._model()
    for context, choices, size in (
        (None, None, COPIED),
        (False, None, NODES),
        (None, "0 1 2 0.0 0.1 0.0.0", 6),
    ):
        proposer = Medusa(heads=str(folder), choices=choices, context=context).open(model)
        (proposal,) = proposer.propose([turn(torch.ones(64))])
        assert proposal is not None
        assert len(proposal.draft.ids) == size
