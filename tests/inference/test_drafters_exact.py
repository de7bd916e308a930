"""Every drafter beside plain greedy decoding: in float32 no token differs, in bfloat16 ties may.

A cell of the matrix is drafter x batch x draft length x grammar x adapter. In CI each cell takes a
few of the prompts, in the soak all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pytest

from inference import Grammar, Message, Request, SamplingParams
from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from inference.requests import Output
from inference.speculative import Drafter
from inference.speculative.llmcad import LLMCad
from inference.speculative.lookahead import Lookahead
from inference.speculative.medusa import Medusa
from inference.speculative.prompt_lookup import PromptLookup
from inference.speculative.rapid import Rapid
from inference.speculative.table import DRAFTERS
from tests.inference.test_batching import opened, requests_for
from tests.inference.test_engine_adapters import OPTIONS, save
from tests.inference.test_medusa import heads_of
from tests.inference.tiny import checkpoint

BATCHES = (1, 4, 16)
LENGTHS = range(1, 9)
PROMPTS, FEW = 200, 16
DEFAULT_PROMPTS, DEFAULT_FEW = 40, 4
WORDS = Grammar.regex("(fox|dog|north|ri)( (fox|dog|north|ri))*")
KINDS = [(grammar, adapter) for grammar in (None, WORDS) for adapter in ((), ("extra",))]
TIE = 0.5
"""Widest gap between two bfloat16 logits that a pass over more rows may turn around: at logits of
16 to 32 neighbouring bfloat16 numbers are 0.125 apart, and hidden layers round as well."""


class Places(NamedTuple):
    """What drafters are made of: trained or random heads, and options of small models in turn."""

    heads: str
    small: tuple[dict[str, Any], ...]


def drafters(length: int, places: Places) -> dict[str, Drafter]:
    """Each drafter of the table, with drafts of at most `length` tokens; none of them pauses."""
    found: list[Drafter] = [
        PromptLookup(tokens=length, ngram=2, adaptive=False),
        Lookahead(decoding_length=length + 1, split=False, adaptive=False),
        Medusa(heads=places.heads, nodes=length, adaptive=False),
        LLMCad(nodes=length, adaptive=False, **places.small[length % len(places.small)]),
        Rapid(gamma=length, adaptive=False),
    ]
    named = {kind: name for name, kind in DRAFTERS.items()}
    assert len(found) == len(DRAFTERS), "a drafter of the table is not in the matrix"
    return {named[type(one)]: one for one in found}


def given(request: Request, plain: Output, drafter: Drafter) -> Request:
    """The request with a drafter and with what it reads: half of the answer, and a wrong end."""
    text = plain.text[: len(plain.text) // 2] + " fox dog north " + plain.text[1:]
    prompt = request.prompt and request.prompt[len(request.prompt) // 3 :]
    request = replace(request, drafter=drafter, references=(text,))
    return replace(request, draft_prompt=prompt or None) if isinstance(drafter, Rapid) else request


class Tiny(NamedTuple):
    """An engine, what drafts for it, and the answers of plain decoding by prompt and kind."""

    engine: NativeEngine
    places: Places
    plain: dict[tuple[int, int], tuple[Request, Output]]


@pytest.fixture(scope="module")
def tiny_answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """Batches of 16, which `test_batching` holds against transformers."""
    folder = checkpoint(tmp_path_factory.mktemp("exact"), context=160)
    extra = save(folder, tmp_path_factory.mktemp("extra"), 3, **OPTIONS["all"])
    with opened(folder) as engine:
        engine.attach("extra", extra)
        heads = heads_of(engine, tmp_path_factory.mktemp("heads"))
        other = checkpoint(tmp_path_factory.mktemp("other"), seed=1, context=160)
        small = {"layers": 1}, {"model": str(other)}, {"model": str(folder), "update": "printed"}
        keys = list(product(range(PROMPTS), range(len(KINDS))))
        prompts = requests_for(11, PROMPTS)
        requests = [
            replace(prompts[at], id=f"{at}-{kind}", grammar=KINDS[kind][0], adapters=KINDS[kind][1])
            for at, kind in keys
        ]
        outputs: list[Output] = []
        for at in range(0, len(requests), 16):
            outputs += engine.generate(requests[at : at + 16])
        plain = dict(zip(keys, zip(requests, outputs, strict=True), strict=True))
        yield Tiny(engine, Places(str(heads), small), plain)


SIZES = [
    pytest.param(FEW, id="short"),
    pytest.param(PROMPTS, marks=pytest.mark.soak, id="soak"),
]


@pytest.mark.parametrize("prompts", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_no_token_differs(tiny_answers: Tiny, name: str, batch: int, prompts: int) -> None:
    """Drafts of 1 to 8 tokens; over all lengths the short form takes the prompts in turn."""
    engine, places, plain = tiny_answers
    drafted = 0
    for length, kind in product(LENGTHS, range(len(KINDS))):
        drafter = drafters(length, places)[name]
        first = 0 if prompts == PROMPTS else (LENGTHS.index(length) * prompts) % PROMPTS
        chosen = [plain[(first + at) % PROMPTS, kind] for at in range(prompts)]
        if prompts < PROMPTS and batch < 16:
            chosen = chosen[: 2 * batch]
        for at in range(0, len(chosen), batch):
            some = chosen[at : at + batch]
            outputs = engine.generate([given(*one, drafter) for one in some])
            for (request, want), have in zip(some, outputs, strict=True):
                place = f"{name}, length {length}, kind {kind}, prompt {request.id}"
                assert have.token_ids == want.token_ids, place
                assert (have.text, have.finish_reason) == (want.text, want.finish_reason), place
                assert have.stats.accepted <= have.stats.drafted
                assert have.notes["drafter"]["lossless"]
                drafted += have.stats.drafted
    assert drafted > 0


ASKED = [
    "Name three rivers.",
    "Why is the sky blue?",
    "Write a line about the sea.",
    "Repeat: a rose is a rose is a rose is a rose.",
    "List the days of the week.",
    "Count from one to twenty.",
    "What is a triangle?",
    "Say hello in French.",
]
PASSAGE = "The Orrin Mill was founded by Petra Lund in 1803. It stands beside Lake Dorn."
LETTERS = Grammar.regex("[A-Za-z ,.]{1,200}")


def talks(count: int) -> list[Request]:
    """Chats of a kind, every fourth over a passage and every fourth under a grammar."""
    found = []
    for at in range(count):
        text = ASKED[at % len(ASKED)]
        if at >= len(ASKED):
            text = f"{text} Answer number {at}, please."
        if at % 4 == 1:
            text = f"{PASSAGE} {text} Then copy the first sentence above."
        found.append(
            Request(
                messages=[Message("user", text)],
                sampling=SamplingParams(max_tokens=24),
                grammar=LETTERS if at % 4 == 3 else None,
                logprobs=5,
                id=f"talk-{at}",
            )
        )
    return found


DEFAULT_PLACES = Places("medusa-default", ({"layers": 20},))
DEFAULT_SIZES = [
    pytest.param(DEFAULT_FEW, id="short"),
    pytest.param(DEFAULT_PROMPTS, marks=pytest.mark.soak, id="soak"),
]


def chat(request: Request, plain: Output, drafter: Drafter) -> Request:
    """The request with a drafter that reads the passage or the first half of the answer."""
    texts = (PASSAGE, plain.text[: len(plain.text) // 2])
    request = replace(request, drafter=drafter, references=texts)
    return replace(request, draft_prompt=PASSAGE) if isinstance(drafter, Rapid) else request


Plainly = Callable[[NativeEngine, int], list[tuple[Request, Output]]]


@pytest.fixture(scope="module")
def plainly() -> Plainly:
    """Answers of plain decoding in batches of 4, once for each engine and number of prompts."""
    known: dict[tuple[int, int], list[tuple[Request, Output]]] = {}

    def get(engine: NativeEngine, count: int) -> list[tuple[Request, Output]]:
        key = id(engine), count
        if key not in known:
            known[key] = []
            for at in range(0, count, 4):
                some = talks(count)[at : at + 4]
                known[key] += zip(some, engine.generate(some), strict=True)
        return known[key]

    return get


@pytest.mark.default_model
@pytest.mark.parametrize("prompts", DEFAULT_SIZES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_no_token_of_the_default_model_differs(
    default_engine: NativeEngine, plainly: Plainly, name: str, prompts: int
) -> None:
    """Float32; in the soak in batches of 1, 4 and 16."""
    plain = plainly(default_engine, prompts)
    drafted = 0
    for batch in BATCHES if prompts == DEFAULT_PROMPTS else (4,):
        for at in range(0, prompts, batch):
            some = plain[at : at + batch]
            drafter = drafters(1 + (at // batch) % 8 if batch == 1 else 7, DEFAULT_PLACES)[name]
            outputs = default_engine.generate([chat(*one, drafter) for one in some])
            for (request, want), have in zip(some, outputs, strict=True):
                assert have.token_ids == want.token_ids, (name, batch, request.id)
                drafted += have.stats.drafted
    assert drafted > 0


@pytest.fixture(scope="module")
def bfloat16() -> Iterator[NativeEngine]:
    config = NativeConfig(model="default", dtype="bfloat16", device="cpu")
    with closing(NativeEngine.from_config(config)) as engine:
        yield engine


def gap(plain: Output, place: int, other: str) -> float:
    """How far a token was behind the choice of plain decoding, in logits; infinite off the list."""
    row = plain.logprobs[place]
    return row.logprob - dict(row.top).get(other, -math.inf)


@pytest.mark.default_model
@pytest.mark.parametrize("prompts", DEFAULT_SIZES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_in_bfloat16_the_first_difference_is_a_near_tie(
    bfloat16: NativeEngine,
    plainly: Plainly,
    record_property: Callable[[str, object], None],
    name: str,
    prompts: int,
) -> None:
    """Counted and reported: how many answers differ and the widest gap where they first do."""
    gaps: list[float] = []
    drafter = drafters(7, DEFAULT_PLACES)[name]
    plain = plainly(bfloat16, prompts)
    for at in range(0, prompts, 4):
        some = plain[at : at + 4]
        outputs = bfloat16.generate([chat(*one, drafter) for one in some])
        for (_, want), have in zip(some, outputs, strict=True):
            pairs = zip(want.token_ids, have.token_ids, strict=False)
            first = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
            if first is None:
                assert have.token_ids == want.token_ids
                continue
            gaps.append(gap(want, first, have.logprobs[first].text))
    record_property("differ", len(gaps))
    record_property("widest_gap", max(gaps, default=0.0))
    print(f"{name}: {len(gaps)} of {prompts} answers differ, gaps {sorted(gaps)}")
    assert all(one <= TIE for one in gaps), gaps
