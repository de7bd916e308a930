"""The drafter `lookahead` without an engine: what it remembers, for whom, how much it drafts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference import SamplingParams
from inference.errors import DrafterInputError
from inference.native.model import Model
from inference.native.sequence import Draft
from inference.speculative import Proposer, Start, Turn, build, parse, spell
from inference.speculative.lookahead import CPU_IDS, GPU_IDS, Lookahead
from tests.inference.tiny import tokenizer

END = 0
WORDS = tokenizer()


def proposer(drafter: Lookahead | None = None, device: str = "cpu") -> Any:
    """A drafter opened for a model of which it reads no more than these facts."""
    facts = SimpleNamespace(device=torch.device(device), stop_ids=frozenset({END}), tokenizer=WORDS)
    return (drafter or Lookahead()).open(cast(Model, facts))


def start(prompt: Sequence[int], *references: Sequence[int], tenant: str = "") -> Start:
    return Start(prompt, True, references, SamplingParams(), 0, tenant)


def turn(state: Any, ids: Sequence[int], prompt: int, room: int = 64, depth: int = 64) -> Turn:
    return Turn(state, ids, prompt, 1, (), room, depth)


def propose(at: Proposer, *turns: Turn) -> list[Draft | None]:
    return [None if one is None else one.draft for one in at.propose(turns)]


def drafted(at: Proposer, state: Any, ids: Sequence[int], prompt: int) -> set[int]:
    """The tokens of a draft."""
    (draft,) = propose(at, turn(state, ids, prompt))
    return set(draft.ids) if draft is not None else set()


def chains(at: Proposer, state: Any, ids: Sequence[int], prompt: int) -> list[int]:
    (draft,) = propose(at, turn(state, ids, prompt))
    assert draft is not None
    return [draft.ids[node] for node in draft.ancestors()[-1]]


def test_prompt_output_and_references_are_copied_from() -> None:
    at = proposer()
    prompt = [9, 2, 3, 4, 5, 9, 9]
    state = at.begin(start(prompt, [6, 7, 8, 10], [11, 12, 13]))
    assert chains(at, state, [*prompt, 2, 3], len(prompt)) == [4, 5, 9, 9]
    assert chains(at, state, [*prompt, 2, 3, 6, 7], len(prompt)) == [8, 10]
    assert chains(at, state, [*prompt, 2, 3, 6, 7, 11], len(prompt)) == [12, 13]
    # What was emitted a moment ago is found as well: 20 21 follow 2 3 6 7 11.
    ids = [*prompt, 2, 3, 6, 7, 11, 20, 21, 20]
    assert chains(at, state, ids, len(prompt)) == [21, 20]
    assert at.notes(state) == {"references": 2, "turns": 4, "empty": 0}


def test_nothing_found_is_noted() -> None:
    at = proposer()
    state = at.begin(start([2, 3]))
    assert at.notes(state) == {"references": 0, "turns": 0, "empty": 0}
    assert propose(at, turn(state, [2, 3, 4], 2)) == [None]
    assert at.notes(state)["fallback"] == (
        "plain decoding: nothing that was read was found to go on"
    )


@given(
    prompt=st.lists(st.integers(2, 5), min_size=1, max_size=60),
    output=st.lists(st.integers(2, 5), min_size=1, max_size=20),
    room=st.integers(1, 64),
    depth=st.integers(1, 64),
    ids=st.integers(2, 64),
    branch=st.integers(1, 20),
    mode=st.sampled_from(["hier", "par", "one"]),
    rows=st.integers(1, 20),
    split=st.booleans(),
)
def test_drafts_stay_within_their_bounds(
    prompt: list[int], output: list[int], room: int, depth: int, ids: int, rows: int, **rest: Any
) -> None:
    drafter = Lookahead(
        decoding_length=ids, branch_length=rest["branch"], mode=rest["mode"], split=rest["split"]
    )
    at = proposer(drafter)
    state = at.begin(start(prompt))
    turns = [turn(state, prompt + output, len(prompt), room, depth)]
    turns += [turn(at.begin(start(prompt)), [*prompt, 2], len(prompt)) for _ in range(rows - 1)]
    draft = propose(at, *turns)[0]
    if draft is not None:
        most = max(ids // rows, 2) if rest["split"] else ids
        assert 1 <= len(draft.ids) <= min(room, most - 1)
        assert max(draft.depths()) <= min(depth, rest["branch"])


def test_a_gpu_drafts_more() -> None:
    text = [token for n in range(2, 30) for token in (7, n, n + 30, n + 60)]
    for device, ids in (("cpu", CPU_IDS), ("cuda", GPU_IDS)):
        at = proposer(device=device)
        (draft,) = propose(at, turn(at.begin(start(text)), [*text, 7], len(text)))
        assert draft is not None and len(draft.ids) == ids - 1


def test_end_tokens_split_a_prompt() -> None:
    at = proposer()
    prompt = [9, 2, 3, END, 4, 5, 6]
    state = at.begin(start(prompt))
    assert drafted(at, state, [*prompt, 2], len(prompt)) == {3}
    assert drafted(at, state, [*prompt, 2, 4], len(prompt)) == {5, 6}


def test_a_request_ends_with_everything_it_knew() -> None:
    at = proposer()
    first = at.begin(start([9, 2, 3, 4]))
    propose(at, turn(first, [9, 2, 3, 4, 5, 6, 7], 4))
    at.end(first)
    second = at.begin(start([9, 9]))
    for token in range(2, 8):
        assert not drafted(at, second, [9, 9, *range(40, 40 + 2 * token), token], 2)


def test_a_shared_trie_keeps_what_was_emitted_and_nothing_else() -> None:
    at = proposer(Lookahead(shared=True))
    first = at.begin(start([9, 2, 3, 4], [2, 30, 31]))
    beside = at.begin(start([8]))
    propose(at, turn(first, [9, 2, 3, 4, 5, 6, 7], 4))
    # Also while the first runs: its prompt and references are its own.
    assert drafted(at, beside, [8, 2], 1) == set()
    assert drafted(at, beside, [8, 2, 5], 1) == {6, 7}
    at.end(first)
    after = at.begin(start([8]))
    assert drafted(at, after, [8, 2], 1) <= {5}  # `beside` emitted 2 5
    assert drafted(at, after, [8, 2, 3], 1) == set()
    assert drafted(at, after, [8, 2, 3, 5], 1) == {6, 7}


@given(
    secret=st.lists(st.integers(100, 120), min_size=2, max_size=30),
    common=st.lists(st.integers(2, 9), min_size=2, max_size=30),
    order=st.lists(st.booleans(), min_size=2, max_size=8),
    shared=st.booleans(),
)
def test_a_canary_of_another_tenant_is_never_drafted(
    secret: list[int], common: list[int], order: list[bool], shared: bool
) -> None:
    at = proposer(Lookahead(shared=shared))
    planted = [token for pair in zip(common, secret, strict=False) for token in pair]
    victim = [at.begin(start([*planted, 2], planted, tenant="victim"))]
    spy = at.begin(start(common, tenant="spy"))
    emitted = list(common)
    for place, mine in enumerate(order):
        if mine:
            emitted.append(secret[place % len(secret)])  # it may guess, and learns nothing
            assert drafted(at, spy, emitted, len(common)) <= set(emitted)
        else:
            propose(at, turn(victim[0], [*planted, 2, *planted * place], len(planted) + 1))
    at.end(victim[0])
    late = at.begin(start(common, tenant="spy"))
    for token in {*common, *secret}:
        assert drafted(at, late, [*common, token], len(common)) <= {*common, *emitted}


def test_idle_tries_beyond_the_most_go_and_used_ones_stay() -> None:
    at = proposer(Lookahead(shared=True, max_tenants=2))

    def remembers(tenant: str) -> bool:
        state = at.begin(start([9], tenant=tenant))
        found = drafted(at, state, [9, 2], 1) == {3}
        at.end(state)
        return found

    def tell(tenant: str) -> Any:
        state = at.begin(start([9], tenant=tenant))
        propose(at, turn(state, [9, 2, 3], 1))
        return state

    used = tell("a")
    for tenant in "bc":
        at.end(tell(tenant))
    assert [remembers(tenant) for tenant in "ac"] == [True, True]
    assert not remembers("b")
    at.end(used)
    at.close()
    assert not remembers("a")


def test_requests_begin_while_others_draft() -> None:
    at = proposer(Lookahead(shared=True))
    prompts = [[9, *(2 + (n * k) % 37 for n in range(300))] for k in range(1, 9)]
    states: list[list[Any]] = [[] for _ in prompts]
    errors: list[BaseException] = []
    stop = threading.Event()

    def admit(place: int) -> None:
        try:
            for _ in range(20):
                states[place].append(at.begin(start(prompts[place], tenant=str(place % 2))))
        except BaseException as error:
            errors.append(error)

    def step() -> None:
        state, done = at.begin(start(prompts[0], tenant="0")), 1
        while not stop.is_set() and done < 250:
            propose(at, turn(state, prompts[0] + prompts[1][:done], len(prompts[0])))
            done += 1
        at.end(state)

    threads = [threading.Thread(target=admit, args=(n,)) for n in range(len(prompts))]
    stepper = threading.Thread(target=step)
    for thread in (stepper, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    stepper.join()
    assert errors == []
    for prompt, admitted in zip(prompts, states, strict=True):
        alone = proposer()
        want = propose(alone, turn(alone.begin(start(prompt)), prompt, len(prompt)))
        assert want[0] is not None
        for state in admitted:
            found = propose(at, turn(state, prompt, len(prompt)))[0]
            assert found is not None and found.ids[0] == want[0].ids[0]
            at.end(state)
    assert {shelf.users for shelf in at._shelves._shelves.values()} == {0}


FAULTS = [
    ("decoding_length=1", "greater than or equal to 2"),
    ("decoding_length=65", "less than or equal to 64"),
    ("branch_length=0", "greater than or equal to 1"),
    ("mode=tree", "'hier', 'par' or 'one'"),
    ("output_weight=0.1", "reference_weight=0.01 outside"),
    ("branch_lenght=3", "did you mean 'branch_length'"),
]


@pytest.mark.parametrize(("text", "says"), FAULTS)
def test_a_fault_is_named_with_its_remedy(text: str, says: str) -> None:
    with pytest.raises(DrafterInputError) as caught:
        parse(f"lookahead:{text}")
    assert says in str(caught.value)


def test_stop_words_are_tokens_of_the_model() -> None:
    with pytest.raises(DrafterInputError, match=r"'quicksand'.*no single token.*leave it out"):
        proposer(Lookahead(stop_words="quicksand"))
    the = WORDS.encode(" the", add_special_tokens=False)
    assert len(the) == 1
    prompt = [9, *the, 5, 6]
    for words, want in (("the", set()), (None, {5, 6})):
        at = proposer(Lookahead(stop_words=words))
        assert drafted(at, at.begin(start(prompt)), [*prompt, 7, *the], len(prompt)) == want


@pytest.mark.parametrize(
    "drafter",
    [Lookahead(), Lookahead(decoding_length=9, mode="par", shared=True, stop_words="the of")],
)
def test_what_is_spelled_is_read_again(drafter: Lookahead) -> None:
    assert parse(spell(drafter)) == drafter
    assert build({"use": "lookahead", **drafter.model_dump()}) == drafter
