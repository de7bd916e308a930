"""Auto-RAG on the default model: what reuse of prefixes saves, and questions answered at once.

Questions are those of the test split of the synthetic knowledge base, lengths mixed. Everyone reads
the same index, and nobody is asked a question twice over one cache.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from api.evaluation.suites import Suite, open_suite
from inference import Budget
from inference.engine import NativeConfig
from inference.errors import UnknownName
from inference.suggest import nearest
from inference.training.hops import HOPS
from tests.bench.contest import say
from tests.bench.figures import Figure, against, alone
from workflows.loading import load_workflow
from workflows.resources import Overrides, ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, RunStatus, execute

AT_ONCE = (4, 16)
"""Questions at once, beside one at a time."""
PLAIN = "without prefix reuse"
ONE = "one at a time"
LIMIT = Budget(tokens=60_000)
"""The workflow's own, without its seconds: how a run ends shall not depend on who else runs."""

Row = Callable[["Bench", str], Coroutine[Any, Any, list[Figure]]]
Ask = Callable[..., Awaitable["Asked"]]


def run(*, n: int = 3, only: Collection[str] = ()) -> list[Figure]:
    """The rows named in `only`, or all.

    `n` are rounds: of three questions for the reuse of prefixes, of sixteen for those at once.
    """
    for name in only:
        if name not in ROWS:
            raise UnknownName(
                f"unknown row {name!r} of benchmark 'auto_rag'; {nearest(name, ROWS)}"
            )
    return Bench(n).run([name for name in ROWS if not only or name in only])


@dataclass(frozen=True, slots=True)
class Asked:
    """A question's run: how it ended, what it computed of its prompts, and how long it took.

    `first` and `later` count tokens that its first and its later generations found in the cache.
    """

    outcome: str
    completed: bool
    prefilled: int
    first: int
    later: int
    seconds: float

    @classmethod
    def of(cls, result: RunResult, seconds: float) -> Asked:
        """From a result; answer and queries are the outcome, of a run that failed its error."""
        known = {key: result.outputs.get(key) for key in ("answer", "queries")}
        cached = [
            step["usage"]["cached_tokens"] for step in result.steps if step["usage"]["model_calls"]
        ]
        return cls(
            json.dumps([known, result.error], sort_keys=True),
            result.status is RunStatus.COMPLETED,
            int(result.usage["prompt_tokens"] - result.usage["cached_tokens"]),
            sum(cached[:1]),
            sum(cached[1:]),
            seconds,
        )


class Bench:
    """The index that rows share, and how a question is asked."""

    def __init__(
        self,
        n: int,
        *,
        model: str = "default",
        inputs: Mapping[str, Any] | None = None,
        at_once: Sequence[int] = AT_ONCE,
    ) -> None:
        self.n = n
        self.at_once = at_once
        self.workflow = load_workflow("auto_rag")
        self._model = model
        self._inputs = dict(inputs or {})

    def run(self, names: Sequence[str]) -> list[Figure]:
        """Figures of rows."""
        figures: list[Figure] = []
        for name in names:
            began = time.perf_counter()
            figures += asyncio.run(ROWS[name](self, name))
            say(f"{name}: {time.perf_counter() - began:.0f} s")
        return figures

    @cached_property
    def suite(self) -> Suite:
        """The questions and their documents."""
        return open_suite("synthetic-hops")

    @cached_property
    def index(self) -> Path | None:
        """The index of the documents."""
        return self.suite.index()

    def questions(self, rounds: int, each: int) -> tuple[list[list[str]], str]:
        """Rounds of `each` questions of all lengths, and one for the warm-up."""
        *asked, last = (one.text for one in self.suite.chosen(rounds * each + 1))
        return [asked[at::rounds] for at in range(rounds)], last

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[Ask]:
        """How to ask over an engine with these options: a question and whose cache it uses."""
        pool = ResourcePool()
        config = NativeConfig(model=self._model, **options)
        resources = Resources(
            self.workflow.spec,
            pool,
            index=self.index,
            overrides=Overrides(engine=config),
        )
        try:
            await resources.open()
            yield partial(self._ask, resources)
        finally:
            pool.close()

    async def _ask(self, resources: Resources, question: str, tenant: str = "") -> Asked:
        """One run; it streams, as runs of the service do, so that no pool of threads limits it."""
        inputs = self.workflow.check_inputs({"question": question, **self._inputs})
        options = RunOptions("bench", budget=LIMIT, tenant=tenant, stream_text=True)
        began = time.perf_counter()
        result = await execute(self.workflow, inputs, resources, options)
        return Asked.of(result, time.perf_counter() - began)


async def _reuse(bench: Bench, row: str, dtype: str) -> list[Figure]:
    """Each question over an engine that reuses prefixes and one that does not, taking turns.

    Each engine has answered another question before, so that the opening that all dialogues share
    is in the cache of the first, as it is in a service.
    """
    rounds, other = bench.questions(bench.n, len(HOPS))
    asked = [question for one in rounds for question in one]
    pairs: list[tuple[Asked, Asked]] = []
    async with (
        bench.opened(dtype=dtype) as ours,
        bench.opened(dtype=dtype, prefix_cache_bytes=0) as plain,
    ):
        await ours(other), await plain(other)
        for turn, question in enumerate(asked):
            if turn % 2:
                theirs = await plain(question)
                pairs.append((await ours(question), theirs))
            else:
                pairs.append((await ours(question), await plain(question)))
            say(f"{row}: {turn + 1} of {len(asked)} questions")
    return reused(row, pairs)


def reused(row: str, pairs: Sequence[tuple[Asked, Asked]]) -> list[Figure]:
    """Figures of pairs with and without reuse; costs are those of pairs that both completed."""
    whole = [pair for pair in pairs if pair[0].completed and pair[1].completed]
    figures = agreeing(row, pairs)
    if not whole:
        return figures
    prefilled = [(a.prefilled, b.prefilled) for a, b in whole]
    seconds = [(a.seconds, b.seconds) for a, b in whole]
    return [
        against(f"{row} prefilled", "tokens/question", PLAIN, prefilled),
        against(f"{row} seconds", "s/question", PLAIN, seconds),
        alone(f"{row} reused_by_first_turn", "tokens/question", [a.first for a, _ in whole]),
        alone(f"{row} reused_by_later_turns", "tokens/question", [a.later for a, _ in whole]),
        *figures,
    ]


def agreeing(row: str, pairs: Sequence[tuple[Asked, Asked]]) -> list[Figure]:
    """How many questions ended alike (answer and queries) on both sides, and completed on both."""
    same = sum(a.outcome == b.outcome for a, b in pairs)
    whole = sum(a.completed and b.completed for a, b in pairs)
    return [
        Figure(f"{row} same_outcomes", same, "questions", n=len(pairs)),
        Figure(f"{row} completed", whole, "questions", n=len(pairs)),
    ]


async def _at_once(bench: Bench, row: str) -> list[Figure]:
    """Rounds in which the same questions are asked one at a time and so many at once.

    Who goes first changes by the round. Each has a tenant of its own, so that none finds in the
    cache what another has computed; what its questions share, they share.
    """
    most = max(bench.at_once)
    rounds, other = bench.questions(bench.n, most)
    order = [1, *bench.at_once]
    rates: dict[int, list[float]] = {count: [] for count in order}
    ended: dict[int, list[Asked]] = {count: [] for count in order}
    async with bench.opened() as ask:
        await ask(other)
        for turn, questions in enumerate(rounds):
            shift = turn % len(order)
            for count in (*order[shift:], *order[:shift]):
                began = time.perf_counter()
                found = await answered(ask, questions, count, f"{turn} of {count}")
                rates[count].append(len(found) / (time.perf_counter() - began))
                ended[count] += found
                say(f"{row}: round {turn + 1} of {len(rounds)}, {count} at once")
    figures = [alone(f"{row}_1", "questions/s", rates[1])]
    for count in bench.at_once:
        name = f"{row}_{count}"
        paired = list(zip(rates[count], rates[1], strict=True))
        figures.append(against(name, "questions/s", ONE, paired, lower_is_better=False))
        figures += agreeing(name, list(zip(ended[count], ended[1], strict=True)))
    return figures


async def answered(ask: Ask, questions: Sequence[str], count: int, tenant: str) -> list[Asked]:
    """All questions, `count` of them at a time, in their order."""
    free = asyncio.Semaphore(count)

    async def one(question: str) -> Asked:
        async with free:
            return await ask(question, tenant)

    return await asyncio.gather(*map(one, questions))


ROWS: dict[str, Row] = {
    "reuse_float32": partial(_reuse, dtype="float32"),
    "reuse_bfloat16": partial(_reuse, dtype="bfloat16"),
    "at_once": _at_once,
}
