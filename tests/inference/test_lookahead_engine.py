"""The drafter `lookahead` in the engine: outputs as without it, whatever its tries hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from inference import Grammar, Output, Request, SamplingParams
from inference.native.engine import NativeEngine
from inference.native.model import Model
from inference.native.prompts import encode
from inference.native.sequence import Draft
from inference.speculative import Proposal, Proposer, Start, Turn
from inference.speculative.lookahead import Lookahead
from tests.inference.test_engine_adapters import OPTIONS, save

Tiny = Callable[..., NativeEngine]
Ids = tuple[int, ...]

PROMPTS = [
    "The quick brown fox. The quick brown dog. The quick",
    "A model reads tokens, keeps keys and values, and writes what comes next. " * 3,
    "🙂 東京 🙂 東京",
    "river fox dog keys river fox",
]


PROPOSED: list[tuple[Ids, Draft]] = []
"""What was drafted behind which tokens."""


class Probed(Lookahead):
    """Lookahead that also reads `texts`, and tells what it drafts."""

    texts: tuple[Ids, ...] = ()

    def open(self, model: Model) -> Proposer:
        return _Probe(super().open(model), self)


class _Probe(Proposer):
    def __init__(self, inner: Proposer, drafter: Probed) -> None:
        self._inner = inner
        self._drafter = drafter

    def begin(self, start: Start) -> Any:
        texts = [*start.references, *self._drafter.texts]
        return self._inner.begin(replace(start, references=texts))

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        found = self._inner.propose(turns)
        for turn, proposal in zip(turns, found, strict=True):
            if proposal is not None:
                PROPOSED.append((tuple(turn.ids), proposal.draft))
        return found

    def end(self, state: Any) -> None:
        self._inner.end(state)

    def notes(self, state: Any) -> dict[str, object]:
        return self._inner.notes(state)


def misleading(outputs: Sequence[Output], seed: int) -> tuple[Ids, ...]:
    """Texts that follow the outputs for a while and then lead astray."""
    draw = random.Random(seed)
    texts: list[Ids] = []
    for output in outputs:
        for _ in range(12):
            texts.append(
                tuple(
                    t if draw.random() < 0.75 else draw.randrange(4, 320) for t in output.token_ids
                )
            )
    return tuple(texts)


def asked(batch: int, sampling: SamplingParams, **options: Any) -> list[Request]:
    return [
        Request(prompt=prompt, sampling=replace(sampling, seed=at), **options)
        for at, prompt in enumerate(PROMPTS[:batch])
    ]


SAMPLINGS = {
    "greedy": SamplingParams(max_tokens=40),
    "penalty": SamplingParams(max_tokens=40, repetition_penalty=1.7),
    "sampled": SamplingParams(max_tokens=40, temperature=0.9, top_p=0.95),
}


@pytest.mark.parametrize("mode", ["hier", "par", "one"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_wrong_branches_change_nothing(tiny: Tiny, name: str, batch: int, mode: Any) -> None:
    engine = tiny("llama", endless=True)
    plain = engine.generate(asked(batch, SAMPLINGS[name]))
    for ids, branch in ((2, 1), (9, 8), (48, 12)):
        drafter = Probed(
            adaptive=False,
            decoding_length=ids,
            branch_length=branch,
            mode=mode,
            split=False,
            texts=misleading(plain, ids),
        )
        found = engine.generate(asked(batch, SAMPLINGS[name], drafter=drafter))
        for want, have in zip(plain, found, strict=True):
            assert have.token_ids == want.token_ids
            assert have.text == want.text
            assert 0 < have.stats.accepted <= have.stats.drafted
            assert ids == 2 or have.stats.accepted < have.stats.drafted, "nothing led astray"
            assert have.stats.forwards <= want.stats.forwards - have.stats.accepted
            assert have.notes["drafter"]["lossless"]


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_wrong_branches_change_nothing_under_a_grammar_and_an_adapter(
    tiny: Tiny, tmp_path: Path, batch: int
) -> None:
    engine = tiny("llama", endless=True)
    words = Grammar("regex", "(fox|dog|fro|do|[0-9]{2})( (fox|dog|fro|do|[0-9]{2}))*")
    engine.attach("wild", save(Path(engine.model), tmp_path / "wild", 3, **OPTIONS["attention"]))
    try:
        requests = [
            Request(
                prompt=f"{PROMPTS[at % 4]} {at}",
                sampling=SamplingParams(max_tokens=40),
                grammar=words if at % 3 != 1 else None,
                adapters=("wild",) if at % 2 else (),
            )
            for at in range(batch)
        ]
        plain = engine.generate(requests)
        drafter = Probed(adaptive=False, split=False, texts=misleading(plain, batch))
        found = engine.generate([replace(one, id=uuid4().hex, drafter=drafter) for one in requests])
    finally:
        engine.detach("wild")
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    assert [one.notes.get("grammar") for one in found] == [
        one.notes.get("grammar") for one in plain
    ]
    assert 0 < sum(one.stats.accepted for one in found) < sum(one.stats.drafted for one in found)


def test_the_result_says_what_was_found(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    drafter = Lookahead(adaptive=False, decoding_length=8)
    sampling = SamplingParams(max_tokens=12)
    request = Request(
        prompt=PROMPTS[0], references=("the lazy dog",), drafter=drafter, sampling=sampling
    )
    note = engine.generate([request])[0].notes["drafter"]
    assert (note["name"], note["references"]) == ("lookahead", 1)
    assert 0 <= note["empty"] <= note["turns"] <= 12
    assert ("fallback" in note) == (note["empty"] == note["turns"])


def within(path: Ids, texts: Sequence[Ids]) -> bool:
    """Whether a path is part of one of the texts."""
    size = len(path)
    return any(text[at : at + size] == path for text in texts for at in range(len(text)))


@pytest.mark.parametrize("same", [True, False])
def test_what_a_request_read_is_drafted_for_nobody_else(tiny: Tiny, same: bool) -> None:
    engine = tiny("llama", endless=True)
    drafter = Probed(adaptive=False, shared=True, split=False, decoding_length=32)

    def run(prompt: str, tenant: str, references: tuple[str, ...] = ()) -> tuple[Ids, Ids]:
        request = Request(
            prompt=prompt,
            tenant=tenant,
            references=references,
            drafter=drafter,
            sampling=SamplingParams(max_tokens=60),
        )
        output = engine.generate([request])[0]
        return tuple(encode(engine._model(), request)), output.token_ids

    secret = "The quick river jumps over the lazy keys, the lazy fox jumps north. "
    read, emitted = run(secret + PROMPTS[0], "a", (secret, PROMPTS[1]))
    PROPOSED.clear()
    tenant = "a" if same else "b"
    run(PROMPTS[0], tenant)  # the next finds its own answer, this one nothing of the kind
    prompt, output = run(PROMPTS[0], tenant)
    own = [prompt[1:], output]
    known = [*own, emitted] if same else own
    assert sum(len(draft.ids) for _, draft in PROPOSED) > 20
    tempted = [token for token in output if not within((token,), [prompt]) and token in read[:-1]]
    assert tempted, "no token of the answer stands in what the other request read alone"
    for ids, draft in PROPOSED:
        for line in draft.ancestors():
            assert within((ids[-1], *(draft.ids[at] for at in line)), known)
