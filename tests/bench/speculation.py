"""Speculative decoding on the default model, bfloat16, greedy: drafters against named peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from inference.engine import NativeConfig
from inference.errors import DrafterInputError, UnknownName
from inference.native.engine import NativeEngine
from inference.speculative import DRAFTERS, Drafter, name_of, parse
from inference.suggest import nearest
from tests.bench import peers
from tests.bench.contest import Contest, Lookup, Native, lengths, means, once, say, slowest_of_all
from tests.bench.decode import Transformers
from tests.bench.figures import Figure
from tests.bench.kept import Kept
from tests.bench.long import LENGTHS, SELF, quality, random_weights, sweep, wins_from
from tests.bench.questions import CATEGORIES, MT_BENCH, Ask, Missing, Questions

TOKENS, SHORT = 1024, 128
"""Most tokens of an answer: Spec-Bench's own limit, and that of rows about what was retrieved."""
BATCHES = (1, 8)
QUICK = 1
"""Rounds of a row where `n` is left out."""

Row = Callable[["Bench"], list[Figure]]


def run(
    *,
    n: int | None = None,
    only: Collection[str] = (),
    drafter: Sequence[str] = (),
    tokens: int | None = None,
    resume: Path | None = None,
) -> list[Figure]:
    """The rows named in `only`; else all with `n`, and without it those of the quick form.

    `n` are the rounds of a row: that many prompts of a category one by one, or batches of eight.
    `drafter` are names with options; left out, all of the table. `tokens` is the limit of answers;
    left out, it is that of the row. `resume` is a file of what was measured, to be gone on with.
    """
    for name in only:
        if name not in ROWS:
            raise UnknownName(
                f"unknown row {name!r} of benchmark 'speculation'; {nearest(name, ROWS)}"
            )
    picked = only or (ROWS if n is not None else QUICK_ROWS)
    with Bench(n or QUICK, drafter, tokens=tokens, resume=resume) as bench:
        return bench.run([name for name in ROWS if name in picked])


class Bench(ExitStack):
    """What rows share, opened by the first that needs it and closed at the end."""

    def __init__(
        self,
        n: int,
        drafter: Sequence[str] = (),
        *,
        model: str = "default",
        tokens: int | None = None,
        data: Questions | None = None,
        resume: Path | None = None,
    ) -> None:
        super().__init__()
        self.n = n
        self.tokens = tokens
        self.data = data or Questions()
        self.kept = Kept()
        self._file = resume
        self._model = model
        self._chosen = [parse(spec) for spec in drafter]
        self._labels = list(drafter)

    def run(self, names: Sequence[str]) -> list[Figure]:
        """Figures of rows, and their means over MT-bench; a row without its data is left out."""
        if self._file is not None:
            self.kept = Kept(self._file, self._made_with(names))
            self.callback(self.kept.close)
            say(f"{self._file}: {len(self.kept)} answers are kept")
        figures: list[Figure] = []
        for name in names:
            began = time.perf_counter()
            try:
                figures += ROWS[name](self)
            except Missing as error:
                say(f"{name}: not measured: {error}")
            else:
                say(f"{name}: {time.perf_counter() - began:.0f} s")
        for batch in BATCHES:
            rows = [f"{name}_batch{batch}" for name in CATEGORIES[:MT_BENCH]]
            for label in self.labels:
                figures += means(figures, rows, label, f"mt_bench_batch{batch}")
        figures += [one for label in self.labels for one in slowest_of_all(figures, label)]
        return figures + wins_from(figures)

    def _made_with(self, names: Sequence[str]) -> dict[str, Any]:
        """All that figures depend on, machine included as far as torch sees it."""
        drafters = [*self.chosen, (SELF, parse(SELF))]
        return {
            "rows": list(names),
            "n": self.n,
            "tokens": self.tokens or [TOKENS, SHORT],
            "drafters": {label: drafter.model_dump(mode="json") for label, drafter in drafters},
            "model": self._model,
            "weights": self.engine._model().weights_digest,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    @cached_property
    def engine(self) -> NativeEngine:
        """Ours, which computes every prompt."""
        config = NativeConfig(model=self._model, dtype="bfloat16", prefix_cache_bytes=0)
        engine = config.open()
        assert isinstance(engine, NativeEngine)
        self.callback(engine.close)
        return engine

    @cached_property
    def lookup(self) -> Lookup:
        """transformers in this process."""
        return Lookup(self.engine, Transformers(self._model))

    @cached_property
    def llamacpp(self) -> peers.Peer | None:
        """llama.cpp in a process of its own, for the default model."""
        peer = peers.llamacpp() if self._model == "default" else None
        return peer and self.enter_context(peer)

    @cached_property
    def plain(self) -> Native:
        """Plain decoding."""
        return Native(self.engine)

    @property
    def chosen(self) -> list[tuple[str, Drafter]]:
        """Drafters with what figures call them: as they were asked for, or by their name."""
        if self._chosen:
            return list(zip(self._labels, self._chosen, strict=True))
        return [(name, parse(name)) for name in DRAFTERS if name != SELF]

    @property
    def labels(self) -> list[str]:
        """What figures call the drafters."""
        return [label for label, _ in self.chosen]

    @cached_property
    def drafters(self) -> list[Native]:
        """Those that fit the model and read what every request has; of others it is said why."""
        found = []
        for label, drafter in self.chosen:
            if name_of(drafter) == SELF:
                say(f"{label}: measured by the rows rapid_* alone")
                continue
            native = Native(self.engine, drafter, label)
            try:
                native.answer([Ask.of("One.")], 2)
            except DrafterInputError as error:
                say(f"{label}: not measured: {error}")
            else:
                found.append(native)
        return found

    def contest(self, row: str) -> Contest:
        """Everyone, and what is kept of the row."""
        everyone = (self.plain, self.drafters, self.lookup, self.llamacpp)
        return Contest(self.engine, *everyone, row, self.kept)


def _answers(bench: Bench, name: str, batch: int) -> list[Figure]:
    """A category of Spec-Bench, or HotpotQA with passages, in batches of one size."""
    count = bench.n * batch
    data = bench.data
    asks = data.hotpotqa(count) if name == "hotpotqa" else data.category(name, count)
    contest = bench.contest(f"{name}_batch{batch}")
    contest.play(batches(asks, batch), bench.tokens or TOKENS)
    return contest.figures(contest.row)


def batches(asks: Sequence[Ask], size: int) -> list[list[Ask]]:
    """All prompts in batches of `size`; the last is filled from the first prompts."""
    return [
        [asks[(at + place) % len(asks)] for place in range(size)]
        for at in range(0, len(asks), size)
    ]


def _readings(bench: Bench) -> list[Figure]:
    """Accepted lengths where what was retrieved stands in the prompt, is a reference, or neither.

    Two prompts a round; `both` and `references` give all that was found to the drafter. None is
    paused: a plain step would count as a draft that was refused.
    """
    figures = []
    for kind, asks in bench.data.readings(2 * bench.n).items():
        for one in bench.drafters:
            steady = one.steady()
            answered = [
                once(
                    bench.kept,
                    ("retrieved", at, one.label, kind),
                    steady,
                    [ask],
                    bench.tokens or SHORT,
                )
                for at, ask in enumerate(asks)
            ]
            figures.append(lengths(f"retrieved {one.label} {kind} accepted_length", answered))
    return figures


def _sweep(bench: Bench, length: int) -> list[Figure]:
    tokens = bench.tokens or SHORT
    return sweep(f"rapid_{length}", bench.engine, bench.data, length, bench.n, tokens, bench.kept)


ROWS: dict[str, Row] = {
    **{
        f"{name}_batch{batch}": partial(_answers, name=name, batch=batch)
        for batch in BATCHES
        for name in (*CATEGORIES, "hotpotqa")
    },
    "retrieved": _readings,
    **{f"rapid_{length}": partial(_sweep, length=length) for length in LENGTHS},
    "rapid_quality": lambda b: quality(b.engine, b.data, b.n, b.kept),
    "rapid_gpu": lambda b: random_weights(b.data, b.n, b.tokens or SHORT, b.kept),
}
QUICK_ROWS = [
    *(f"{name}_batch1" for name in (*CATEGORIES, "hotpotqa")),
    *("rag_batch8", "hotpotqa_batch8", "retrieved"),
    *(f"rapid_{length}" for length in LENGTHS),
    *("rapid_quality", "rapid_gpu"),
]
"""Every category alone, two kinds of batches, and the long contexts."""
