"""Greedy answers of drafters, plain decoding and peers to the same prompts, in turn."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from typing import Any, Protocol

import torch

from inference import Output, Request, SamplingParams
from inference.native.engine import NativeEngine
from inference.native.threads import release_workers
from inference.speculative import Drafter
from tests.bench.decode import Transformers, quiet
from tests.bench.figures import Figure, against, alone
from tests.bench.kept import Kept, Key
from tests.bench.peers import Peer, PeerEnded, absent
from tests.bench.questions import Ask

PLAIN = "plain native"
LOOKUP = "transformers prompt lookup"
LLAMACPP = "llama.cpp, weights in 4 bits"
LOOKUP_TOKENS = 10
NEAR = 0.5
"""Most that the logits of two tokens differ in a near tie.

bfloat16 spaces numbers of 8 to 16 by 0.0625 and of 16 to 32 by 0.125; passes over another number of
rows add in another order, and layers add up what that changes.
"""


@dataclass(frozen=True)
class Answered:
    """A batch answered by this engine.

    `seconds` are those of the whole batch, `decoding` of them came after its last prompt was read,
    `drafting` were spent on proposals. `accepted` counts drafted tokens that were kept.
    """

    ids: tuple[tuple[int, ...], ...]
    seconds: float
    decoding: float = 0.0
    drafting: float = 0.0
    accepted: int = 0
    drafted: int = 0
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Answered:
        """From the object that is kept."""
        ids, texts = tuple(map(tuple, record["ids"])), tuple(record["texts"])
        return cls(**{**record, "ids": ids, "texts": texts})

    @property
    def tokens(self) -> int:
        """Tokens of all answers, those that end them included."""
        return sum(map(len, self.ids))

    @property
    def speed(self) -> float:
        """Tokens a second, the prompts' time included."""
        return self.tokens / self.seconds

    @property
    def decoded_speed(self) -> float:
        """Tokens a second behind the first of each answer, which come after the prompts."""
        return max(self.tokens - len(self.ids), 1) / max(self.decoding, 1e-9)

    @property
    def length(self) -> float:
        """Tokens a forward: one that is drawn behind those that were accepted."""
        return self.tokens / (self.tokens - self.accepted)


class Contender(Protocol):
    """Whoever answers prompts; `label` is what figures call it."""

    label: str

    def answer(self, asks: Sequence[Ask], tokens: int) -> Answered:
        """Answers of at most `tokens` tokens each, greedy."""
        ...


class Native:
    """This engine, plain or with a drafter."""

    def __init__(
        self,
        engine: NativeEngine,
        drafter: Drafter | None = None,
        label: str = PLAIN,
        sampling: SamplingParams | None = None,
    ) -> None:
        self.label = label
        self.lossless = drafter is None or drafter.rule.lossless
        self._engine = engine
        self._sampling = sampling or SamplingParams()
        self._drafter = drafter

    def steady(self) -> Native:
        """The same, never paused where it loses time."""
        drafter = self._drafter and self._drafter.model_copy(update={"adaptive": False})
        return Native(self._engine, drafter, self.label, self._sampling)

    def answer(self, asks: Sequence[Ask], tokens: int) -> Answered:
        """All prompts at once."""
        release_workers()
        requests = [self._request(ask, tokens) for ask in asks]
        began = time.perf_counter()
        outputs = self._engine.generate(requests)
        seconds = time.perf_counter() - began
        for output in outputs:
            output.raise_if_failed()
        reading = max(output.stats.prefill_seconds for output in outputs)
        return Answered(
            tuple(output.token_ids for output in outputs),
            seconds,
            seconds - reading,
            sum(_drafting(output) for output in outputs),
            sum(output.stats.accepted for output in outputs),
            sum(output.stats.drafted for output in outputs),
            tuple(output.text for output in outputs),
        )

    def _request(self, ask: Ask, tokens: int) -> Request:
        sampling = replace(self._sampling, max_tokens=tokens)
        if self._drafter is None:
            return Request(messages=ask.messages, sampling=sampling)
        return Request(
            messages=ask.messages,
            sampling=sampling,
            drafter=self._drafter,
            references=ask.references,
            draft_prompt=ask.draft_prompt,
        )


def _drafting(output: Output) -> float:
    """Seconds that a request's drafter took."""
    return float(output.notes.get("drafter", {}).get("seconds", 0.0))


class Lookup:
    """`generate(prompt_lookup_num_tokens=10)` of transformers: the same token ids, one by one.

    It takes no batches, so that eight prompts are answered one behind the other.
    """

    label = LOOKUP

    def __init__(self, engine: NativeEngine, peer: Transformers) -> None:
        self._engine = engine
        self._peer = peer
        self._stop = sorted(engine._model().stop_ids)

    def answer(self, asks: Sequence[Ask], tokens: int) -> Answered:
        """Answers end with their first end token."""
        rows = [torch.tensor([prompt_ids(self._engine, ask)]) for ask in asks]
        quiet(self._engine)
        began = time.perf_counter()
        with torch.inference_mode():
            found = [self._one(row, tokens) for row in rows]
        return Answered(tuple(found), time.perf_counter() - began)

    def _one(self, row: torch.Tensor, tokens: int) -> tuple[int, ...]:
        made = self._peer.model.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=tokens,
            do_sample=False,
            prompt_lookup_num_tokens=LOOKUP_TOKENS,
            eos_token_id=self._stop or None,
            pad_token_id=self._stop[0] if self._stop else 0,
        )
        ids = made[0, row.shape[1] :].tolist()
        end = next((at for at, token in enumerate(ids) if token in self._stop), len(ids))
        return tuple(ids[: end + 1])


def once(kept: Kept, key: Key, one: Contender, asks: Sequence[Ask], tokens: int) -> Answered:
    """What is kept of an answer; else it is asked for now, and kept."""
    found = kept.get(key)
    if found is not None:
        return Answered.of(found)
    answered = one.answer(asks, tokens)
    kept.put(key, asdict(answered))
    return answered


def prompt_ids(engine: NativeEngine, ask: Ask) -> list[int]:
    """Token ids of a prompt as the engine reads it."""
    return engine.encode(Request(messages=ask.messages))


@dataclass
class Contest:
    """Plain decoding and those that are compared with it, over rounds of batches.

    Without `lookup` there are no other peers, and no figures against them. What is `kept` of the
    row is not asked again.

    In a round everyone answers the same batch, forwards and backwards in turn. llama.cpp ends each
    round: it is asked for as many tokens as plain decoding gave, whatever tokens they are.
    """

    engine: NativeEngine
    plain: Native
    drafters: Sequence[Native]
    lookup: Lookup | None = None
    llamacpp: Peer | None = None
    row: str = ""
    kept: Kept = field(default_factory=Kept)
    answers: dict[str, list[Answered]] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)
    asked: list[Sequence[Ask]] = field(default_factory=list)

    def play(self, batches: Sequence[Sequence[Ask]], tokens: int) -> None:
        """Play all rounds that are not kept, after a short one that is not measured."""
        everyone: list[Contender] = [self.plain, *self.drafters]
        if self.lookup is not None:
            everyone.append(self.lookup)
        turns = range(len(batches))
        if any(self.kept.get(self._key(at, one.label)) is None for at in turns for one in everyone):
            for one in everyone:
                one.answer([Ask.of("One.")], 4)
        for turn, batch in enumerate(batches):
            for one in everyone[:: -1 if turn % 2 else 1]:
                answered = once(self.kept, self._key(turn, one.label), one, batch, tokens)
                self.answers.setdefault(one.label, []).append(answered)
            self._llamacpp(turn, batch)
            self.asked.append(batch)

    def _key(self, turn: int, label: str) -> Key:
        return self.row, turn, label

    def _llamacpp(self, turn: int, batch: Sequence[Ask]) -> None:
        if self.llamacpp is None:
            return
        key = self._key(turn, LLAMACPP)
        if (kept := self.kept.get(key)) is not None:
            self.speeds.append(kept)
            return
        ids = [prompt_ids(self.engine, ask) for ask in batch]
        each = max(self.answers[PLAIN][-1].tokens // len(batch), 1)
        quiet(self.engine)
        try:
            self.speeds.append(self.llamacpp.tokens_per_second(ids, each))
        except PeerEnded as error:
            absent(error)
            self.llamacpp = None
        else:
            self.kept.put(key, self.speeds[-1])

    def figures(self, row: str) -> list[Figure]:
        """Speeds against each peer, accepted lengths, drafting, and where answers part."""
        plain = self.answers[PLAIN]
        found = [alone(f"{row} plain", "tokens/s", [one.speed for one in plain])]
        for drafter in self.drafters:
            found += self._of(f"{row} {drafter.label}", drafter, plain)
        return found

    def _of(self, name: str, drafter: Native, plain: Sequence[Answered]) -> list[Figure]:
        own = self.answers[drafter.label]
        looked_up = self.answers.get(LOOKUP, ())
        drafting = [one.drafting / one.seconds for one in own]
        found = [
            _faster(f"{name} over plain", PLAIN, own, [one.speed for one in plain]),
            against(
                f"{name} decoding over plain",
                "tokens/s",
                PLAIN,
                [(a.decoded_speed, b.decoded_speed) for a, b in zip(own, plain, strict=True)],
                lower_is_better=False,
            ),
            slowest(f"{name} slowest over plain", own, plain),
            whole(f"{name} whole row over plain", PLAIN, own, plain),
            lengths(f"{name} accepted_length", own),
            alone(f"{name} drafting_share", "share", drafting),
        ]
        if self.lookup is not None:
            theirs = [one.speed for one in looked_up]
            found += [
                whole(f"{name} whole row over transformers", LOOKUP, own, looked_up),
                _faster(f"{name} over transformers", LOOKUP, own, theirs),
                _faster(f"{name} over llama.cpp", LLAMACPP, own, self.speeds),
            ]
        return found + (self._parted(name, own, plain) if drafter.lossless else [])

    def _parted(
        self, name: str, own: Sequence[Answered], plain: Sequence[Answered]
    ) -> list[Figure]:
        """How many answers differ from plain decoding's, by what stands at the first difference."""
        gaps, answers = [], 0
        for batch, ours, theirs in zip(self.asked, own, plain, strict=True):
            for ask, made, meant in zip(batch, ours.ids, theirs.ids, strict=True):
                answers += 1
                if made != meant:
                    gaps.append(gap(self.engine, prompt_ids(self.engine, ask), made, meant))
        near = sum(one <= NEAR for one in gaps)
        widest = max((one for one in gaps if isfinite(one)), default=0.0)
        return [
            Figure(f"{name} near_ties", near, "answers", n=answers),
            Figure(f"{name} differences_not_ties", len(gaps) - near, "answers", n=answers),
            Figure(f"{name} widest_gap", widest, "logit", n=answers),
        ]


def gap(
    engine: NativeEngine, prompt: Sequence[int], made: Sequence[int], meant: Sequence[int]
) -> float:
    """Distance of the logits of the first two tokens that differ; infinite if one answer ends."""
    pairs = enumerate(zip(made, meant, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), None)
    if at is None:
        return inf
    request = Request(token_ids=[*prompt, *meant[:at]])
    one, other = engine.score(request, [[made[at]], [meant[at]]])
    return abs(one.total - other.total)


def lengths(name: str, answered: Sequence[Answered]) -> Figure:
    """Tokens a forward over all answers together; the spread is that over the batches."""
    tokens = sum(one.tokens for one in answered)
    forwards = tokens - sum(one.accepted for one in answered)
    spread = alone(name, "", [one.length for one in answered]).spread
    count = sum(len(one.ids) for one in answered)
    return Figure(name, tokens / forwards, "tokens/forward", spread=spread, n=count)


def whole(name: str, peer: str, own: Sequence[Answered], theirs: Sequence[Answered]) -> Figure:
    """All tokens of a row over all of its seconds, against a peer's; long answers weigh more.

    Without as many answers of the peer there is no ratio.
    """
    ours = _rate(own)
    if len(theirs) < len(own):
        return Figure(name, ours, "tokens/s", peer, n=len(own))
    rate = _rate(theirs)
    return Figure(name, ours, "tokens/s", peer, rate, ours / rate, n=len(own))


def _rate(answered: Sequence[Answered]) -> float:
    return sum(one.tokens for one in answered) / sum(one.seconds for one in answered)


def slowest(name: str, own: Sequence[Answered], plain: Sequence[Answered]) -> Figure:
    """The worst ratio over plain of an answer, or a batch of them."""
    ratios = [one.speed / other.speed for one, other in zip(own, plain, strict=True)]
    return Figure(name, min(ratios), "ratio", n=len(ratios))


def slowest_of_all(figures: Sequence[Figure], label: str) -> list[Figure]:
    """The worst ratio over plain of a drafter over all rows in which it was measured."""
    end = f" {label} slowest over plain"
    rows = [(one.value, one.n) for one in figures if one.name.endswith(end)]
    values = [value for value, _ in rows if value is not None]
    count = sum(n for _, n in rows)
    return [Figure(f"all{end}", min(values), "ratio", n=count)] if values else []


def means(figures: Sequence[Figure], rows: Sequence[str], label: str, name: str) -> list[Figure]:
    """Mean ratio over plain of a drafter over rows, if all of them were measured."""
    found = {figure.name: figure.ratio for figure in figures}
    ratios = [found.get(f"{row} {label} over plain") for row in rows]
    if None in ratios:
        return []
    known = [ratio for ratio in ratios if ratio is not None]
    return [Figure(f"{name} {label} over plain", statistics.mean(known), "ratio", n=len(known))]


def _faster(name: str, peer: str, own: Sequence[Answered], speeds: Sequence[float]) -> Figure:
    if len(speeds) < len(own):
        return alone(name, "tokens/s", [one.speed for one in own], peer)
    measured = [(one.speed, speed) for one, speed in zip(own, speeds, strict=True)]
    return against(name, "tokens/s", peer, measured, lower_is_better=False)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
