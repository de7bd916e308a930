"""Speculation changes nothing: whatever is drafted, the tokens are those of plain decoding."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from inference import FinishReason, Grammar, Request
from inference.errors import DrafterInputError, InferenceInputError
from inference.guidance import Context, ContextAware
from inference.kv import parse as parse_kv
from inference.native.engine import NativeEngine
from inference.native.model import Model
from inference.requests import Output, SamplingParams
from inference.speculative import Drafter, Proposal, Proposer, Start, Turn, build, parse, spell
from inference.taps import Choice, Taps
from tests.inference.drafting import random_draft
from tests.inference.test_batching import opened, requests_for, tokens
from tests.inference.test_engine_adapters import OPTIONS, save
from tests.inference.tiny import checkpoint

TREE = {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": ["x", "yy"]}}}}


class Guess(Drafter):
    """Random trees around the true continuation of each prompt, so that all depths are accepted."""

    adaptive: bool = False
    size: int
    seed: int = 0
    truths: ClassVar[dict[tuple[int, ...], tuple[int, ...]]] = {}

    def open(self, model: Model) -> Proposer:
        """A proposer that knows the answers."""
        return Guesser(self)


class Guesser(Proposer):
    """Also checks what it is told."""

    def __init__(self, options: Guess) -> None:
        self._options = options
        self.ended = 0

    def begin(self, start: Start) -> Any:
        """State: what is known of the request."""
        dice = random.Random(self._options.seed)
        return {"prompt": tuple(start.prompt), "dice": dice, "drafted": None, "told": []}

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A tree for each."""
        return [self._one(turn) for turn in turns]

    def _one(self, turn: Turn) -> Proposal | None:
        state = turn.state
        told: list[int] = state["told"]
        fresh = list(turn.ids[len(turn.ids) - turn.fresh :]) if turn.fresh else []
        told += fresh
        assert list(turn.ids[turn.prompt :]) == told, "every token is told once, in order"
        if state["drafted"] is not None:
            kept = [state["drafted"].ids[at] for at in turn.kept]
            assert fresh[: len(kept)] == kept
            assert [state["drafted"].parents[at] for at in turn.kept] == [-1, *turn.kept[:-1]][
                : len(kept)
            ]
        truth = Guess.truths.get(state["prompt"], ())
        rest = truth[len(told) :] if list(truth[: len(told)]) == told else ()
        dice = state["dice"]
        draft = random_draft(dice, rest, dice.randint(1, self._options.size))
        state["drafted"] = draft
        return Proposal(draft)

    def end(self, state: Any) -> None:
        """Counted."""
        self.ended += 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("speculation"))


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(folder, tmp_path_factory.mktemp("lora"), 3, **OPTIONS["all"])


@pytest.fixture
def engine(folder: Path, adapter: Path) -> Iterator[NativeEngine]:
    with opened(folder) as found:
        found.attach("extra", adapter)
        yield found


@contextmanager
def known(engine: NativeEngine, plain: Sequence[Request], outputs: Sequence[Output]) -> Any:
    """The guesser knows these answers."""
    desk = engine._admission()
    with desk.admit([replace(one, id=f"{one.id}-known") for one in plain]) as jobs:
        Guess.truths.update(
            (tuple(job.prompt), output.token_ids) for job, output in zip(jobs, outputs, strict=True)
        )
    try:
        yield
    finally:
        Guess.truths.clear()


def drafted(engine: NativeEngine, plain: list[Request], drafter: Drafter, batch: int) -> None:
    """The same tokens, text and end as without a drafter, in batches of `batch`."""
    expected = engine.generate(plain)
    with known(engine, plain, expected):
        found: list[Output] = []
        for at in range(0, len(plain), batch):
            wanted = [replace(one, drafter=drafter) for one in plain[at : at + batch]]
            found += engine.generate(wanted)
    assert tokens(found) == tokens(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.usage.completion_tokens == other.usage.completion_tokens
        assert one.notes.get("grammar") == other.notes.get("grammar")
        # The logits of all rows of a step may differ in their last bits.
        assert [row.id for row in one.logprobs] == [row.id for row in other.logprobs]
        for row, same in zip(one.logprobs, other.logprobs, strict=True):
            assert row.logprob == pytest.approx(same.logprob, abs=1e-3)
    accepted = sum(one.stats.accepted for one in found)
    assert accepted > len(plain) // 2
    proposer = engine._admission().proposers._open[drafter]
    if isinstance(proposer, Guesser):
        assert proposer.ended == len(plain)


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("size", range(1, 9))
def test_greedy_is_token_identical(engine: NativeEngine, batch: int, size: int) -> None:
    plain = requests_for(size, 24)
    plain = [replace(one, logprobs=2) if at % 5 == 0 else one for at, one in enumerate(plain)]
    drafted(engine, plain, Guess(size=size), batch)


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("adapters", [(), ("extra",)])
def test_with_grammar_and_adapter(
    engine: NativeEngine, batch: int, adapters: tuple[str, ...]
) -> None:
    grammars = [Grammar.json_schema(TREE), Grammar.regex("[a-z ]{3,20}"), None]
    plain = [
        replace(one, grammar=grammars[at % 3], adapters=adapters if at % 2 == 0 else ())
        for at, one in enumerate(requests_for(batch, 16, max_tokens=24))
    ]
    drafted(engine, plain, Guess(size=8), batch)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8, "seed": 5},
        {"temperature": 1.3, "seed": 5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"repetition_penalty": 1.3},
        {"temperature": 0.7, "seed": 1, "repetition_penalty": 1.2},
        {"stop": ("e", "fox", " a")},
    ],
)
def test_with_sampling_penalties_and_stop_strings(
    engine: NativeEngine, sampling: dict[str, Any]
) -> None:
    plain = [
        replace(one, sampling=replace(one.sampling, **sampling)) for one in requests_for(3, 16)
    ]
    drafted(engine, plain, Guess(size=8), 4)


@pytest.mark.parametrize(
    "options", [{"step_tokens": 9}, {"kv_cache_bytes": 1, "step_rows": 3}, {"step_tokens": 16}]
)
def test_with_little_room(folder: Path, options: dict[str, Any]) -> None:
    with opened(folder, **options) as engine:
        drafted(engine, requests_for(4, 24), Guess(size=8), 16)


@pytest.mark.parametrize(("budget", "to"), [(5, 4), (1, 0)])
def test_a_tree_above_the_step_budget_is_cut_and_the_result_says_so(
    folder: Path, budget: int, to: int
) -> None:
    plain = replace(requests_for(4, 1)[0], sampling=SamplingParams(max_tokens=30))
    with opened(folder) as engine:
        (expected,) = engine.generate([plain])
        (roomy,) = engine.generate([replace(plain, drafter=Guess(size=8))])
        assert "cut" not in roomy.notes["drafter"]
    with opened(folder, step_tokens=budget) as engine, known(engine, [plain], [expected]):
        (found,) = engine.generate([replace(plain, drafter=Guess(size=8))])
    assert found.token_ids == expected.token_ids
    cut = found.notes["drafter"]["cut"]
    assert cut["to"] == to
    assert 0 < cut["drafts"] < 30
    assert (found.stats.drafted > 0) is (to > 0)


def test_beside_rows_that_do_not_speculate_and_with_a_cache_of_its_own(
    engine: NativeEngine,
) -> None:
    plain = requests_for(6, 12, max_tokens=20)
    policy = parse_kv("streaming_llm:sinks=2,recent=12")
    plain = [replace(one, kv=policy) if at % 3 == 0 else one for at, one in enumerate(plain)]
    expected = engine.generate(plain)
    with known(engine, plain, expected):
        some = [
            replace(one, drafter=Guess(size=6)) if at % 2 == 0 else one
            for at, one in enumerate(plain)
        ]
        found = engine.generate(some)
    full = [at for at, one in enumerate(plain) if one.kv is None]
    assert [found[at].token_ids for at in full] == [expected[at].token_ids for at in full]
    assert all(one.stats.drafted == 0 for one in found[1::2])
    assert all(one.stats.drafted > 0 for one in found[::2] if len(one.token_ids) > 2)


def test_a_prefix_that_others_wrote_and_what_a_speculating_row_leaves(folder: Path) -> None:
    with opened(folder) as engine:
        text = "The quick brown fox jumps over the lazy dog while the river runs north. " * 2
        plain = Request(prompt=text, sampling=SamplingParams(max_tokens=40), id="a")
        (expected,) = engine.generate([plain])
        engine._core().forget()
        with known(engine, [plain], [expected]):
            again = [replace(plain, id=f"s{n}", drafter=Guess(size=8, seed=n)) for n in range(3)]
            outputs = [engine.generate([one])[0] for one in again]
        assert {one.token_ids for one in outputs} == {expected.token_ids}
        assert outputs[1].usage.cached_tokens > 0
        longer = replace(plain, id="b", prompt=text + expected.text)
        (cold,) = engine.generate([longer])
        engine._core().forget()
        (warm,) = engine.generate([replace(longer, id="c")])
        assert cold.token_ids == warm.token_ids


def test_every_choice_is_shown_once(engine: NativeEngine) -> None:
    plain = requests_for(8, 1, max_tokens=24)[0]
    seen: list[Choice] = []

    def sink(one: object) -> None:
        if isinstance(one, Choice):
            seen.append(one)

    (expected,) = engine.generate([plain])
    with known(engine, [plain], [expected]):
        (found,) = engine.generate(
            [replace(plain, drafter=Guess(size=5), taps=Taps(sink, logits=True))]
        )
    assert tuple(one.token for one in seen) == found.token_ids == expected.token_ids
    assert [one.position for one in seen] == list(
        range(seen[0].position, seen[0].position + len(seen))
    )


def test_resumed_and_aborted(engine: NativeEngine) -> None:
    plain = Request(prompt="the fox", sampling=SamplingParams(max_tokens=40), id="r")
    (expected,) = engine.generate([plain])
    with known(engine, [plain], [expected]):
        cut = replace(
            plain, id="s", resumed=expected.token_ids[:7], drafter=Guess(size=4), prompt="the fox"
        )
        (found,) = engine.generate([cut])
        assert found.token_ids == expected.token_ids
        late = replace(plain, id="t", drafter=Guess(size=4), seconds=1e-9)
        (ended,) = engine.generate([late])
        assert ended.finish_reason is FinishReason.DEADLINE


def test_prompt_lookup_copies(engine: NativeEngine) -> None:
    lookup = parse("prompt_lookup:tokens=6,ngram=2,adaptive=false")
    plain = requests_for(9, 12, max_tokens=60)
    expected = engine.generate(plain)
    found = engine.generate([replace(one, drafter=lookup) for one in plain])
    assert tokens(found) == tokens(expected)
    told = engine.generate(
        [
            replace(one, drafter=lookup, references=(output.text,))
            for one, output in zip(plain, expected, strict=True)
        ]
    )
    assert tokens(told) == tokens(expected)
    assert sum(one.stats.accepted for one in told) > sum(one.stats.accepted for one in found)
    assert told[0].notes["drafter"]["name"] == "prompt_lookup"
    assert told[0].notes["drafter"]["lossless"] is True


class Broken(Drafter):
    """Breaks at its first turn."""

    def open(self, model: Model) -> Proposer:
        """As said."""
        return Breaks()


class Breaks(Proposer):
    """See above."""

    def begin(self, start: Start) -> Any:
        """Nothing."""

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """Breaks."""
        raise RuntimeError("broken")


def test_a_proposer_that_breaks_harms_only_those_who_asked_for_it(engine: NativeEngine) -> None:
    fine = requests_for(2, 1, max_tokens=40)[0]
    (expected,) = engine.generate([fine])
    found: list[Output | Exception] = []
    beside = threading.Event()

    def sink(seen: object) -> None:  # the other request comes while this one is decoded
        beside.set()
        time.sleep(0.005)

    slow = replace(fine, drafter=parse("prompt_lookup"), taps=Taps(sink, logits=True))
    thread = threading.Thread(target=lambda: found.extend(engine.generate([slow])))
    thread.start()
    assert beside.wait(30)
    bad = replace(fine, id="bad", drafter=Broken(adaptive=False))
    with pytest.raises(RuntimeError, match="broken"):
        engine.generate([bad])
    assert not found, "it still ran"
    thread.join()
    assert isinstance(found[0], Output) and found[0].token_ids == expected.token_ids


def test_options_that_vary_leave_little_open(engine: NativeEngine) -> None:
    request = requests_for(1, 1)[0]
    found = engine._admission().proposers
    closed: list[int] = []
    for size in range(1, 9):
        drafter = Guess(size=size)
        engine.generate([replace(request, drafter=drafter)])
        found._open[drafter].close = lambda size=size: closed.append(size)  # type: ignore[method-assign, misc]
    assert [one.size for one in found._open] == [5, 6, 7, 8]  # type: ignore[attr-defined]
    assert closed == [1, 2, 3, 4]
    assert not found._users


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt_lokup", "prompt_lookup"),
        ("prompt_lookup:tokens=0", "greater than or equal to 1"),
        ("prompt_lookup:tokens=65", "less than or equal to 64"),
        ("prompt_lookup:words=3", "no option 'words'"),
    ],
)
def test_what_is_no_drafter_is_named(text: str, said: str) -> None:
    with pytest.raises(DrafterInputError, match=said):
        parse(text)


def test_texts_and_mappings_name_the_same_drafter() -> None:
    one = build({"use": "prompt_lookup", "tokens": 4})
    assert parse(spell(one)) == one == parse("prompt_lookup:tokens=4")


def test_guidance_and_drafts_do_not_go_together(engine: NativeEngine) -> None:
    guidance = ContextAware(Context(prompt="x"))
    request = Request(prompt="the", guidance=guidance, drafter=parse("prompt_lookup"))
    with pytest.raises(InferenceInputError, match="guidance with a drafter"):
        engine.generate([request])
