"""Requests that arrive while others are answered, under two schedules of the same engine.

Arrivals are a Poisson process; lengths of prompts and answers are log-normal, with the long prompts
and short answers of retrieval-augmented generation (the load of DeepSpeed FastGen, arXiv
2401.08671, uses the same distributions).
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from inference import Request, SamplingParams
from inference.engine import Engine, NativeConfig
from inference.native.engine import NativeEngine
from inference.native.threads import release_workers
from tests.bench.decode import quiet
from tests.bench.figures import Figure, against
from tests.bench.texts import corpus_ids, window

REQUESTS = 48
LOAD = 1.0
"""Share of the engine's capacity that the arrivals ask for."""
PROMPT = (300, 0.5, 64, 1200)
ANSWER = (20, 0.5, 8, 80)
"""Median tokens, sigma of the logarithm, least, most."""
SEED = 2401
STEP_TOKENS = 128
"""Budget of a step under SplitFuse, well below most prompts: what answers wait for at most."""
PEER = "prefill-first scheduling"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `at` is its share of the time until the last arrival, lengths in tokens."""

    at: float
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one replay of a trace measured, in seconds; tokens are those of prompts and answers.

    `gaps` are the times between the pieces of each answer, `first` those until its first piece.
    """

    gaps: tuple[tuple[float, ...], ...]
    first: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def gap(self, share: float) -> float:
        """Percentile of the gaps of all answers together."""
        return percentile(list(chain.from_iterable(self.gaps)), share)

    @property
    def stall(self) -> float:
        """Median over the answers of the longest gap in each."""
        return statistics.median(max(gaps) for gaps in self.gaps if gaps)


def trace(count: int, seed: int = SEED) -> list[Arrival]:
    """`count` >= 2 arrivals, from 0 to 1, the same for the same arguments."""
    chance = random.Random(seed)

    def length(median: float, sigma: float, least: int, most: int) -> int:
        return min(max(round(chance.lognormvariate(math.log(median), sigma)), least), most)

    times = [0.0, *accumulate(chance.expovariate(1.0) for _ in range(count - 1))]
    return [Arrival(at / times[-1], length(*PROMPT), length(*ANSWER)) for at in times]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def replay(engine: Engine, arrivals: Sequence[Arrival], ids: list[int], span: float) -> Replayed:
    """Send the arrivals within `span` seconds, and time every piece of every answer."""
    return asyncio.run(_replay(engine, arrivals, ids, span))


async def _replay(
    engine: Engine, arrivals: Sequence[Arrival], ids: list[int], span: float
) -> Replayed:
    began = time.perf_counter()

    async def one(at: int, arrival: Arrival) -> tuple[list[float], int]:
        prompt = window(ids, at * 1009, arrival.prompt)
        request = Request(token_ids=prompt, sampling=SamplingParams(max_tokens=arrival.answer))
        await asyncio.sleep(began + arrival.at * span - time.perf_counter())
        times, tokens = [time.perf_counter()], arrival.prompt
        async for chunk in engine.stream(request):
            times.append(time.perf_counter())
            if chunk.output is not None:
                tokens += chunk.output.usage.completion_tokens
        return times, tokens

    found = await asyncio.gather(*(one(at, arrival) for at, arrival in enumerate(arrivals)))
    seconds = time.perf_counter() - began
    gaps = tuple(
        tuple(later - sooner for sooner, later in pairwise(times[1:])) for times, _ in found
    )
    first = tuple(times[1] - times[0] for times, _ in found)
    return Replayed(gaps, first, sum(tokens for _, tokens in found), seconds)


def inter_token(n: int) -> list[Figure]:
    """P95 of the time between tokens, throughput, and time to the first token, of both.

    Prefill-first keeps the engine's own budget, which reads prompts faster.
    """
    options = NativeConfig(dtype="bfloat16", prefix_cache_bytes=0)
    ours = options.model_copy(update={"step_tokens": STEP_TOKENS}).open()
    peer = options.model_copy(update={"schedule": "prefill_first"}).open()
    try:
        return _figures(ours, peer, n)
    finally:
        ours.close()
        peer.close()


def _figures(ours: Engine, peer: Engine, n: int) -> list[Figure]:
    ids, first = corpus_ids(), trace(REQUESTS)
    # Unmeasured, and what all of them take when they come at once says what the capacity is.
    _alone(peer, ours)
    replay(peer, first[: REQUESTS // 4], ids, 0.0)
    _alone(ours, peer)
    capacity = replay(ours, first, ids, 0.0).throughput
    found: list[tuple[Replayed, Replayed]] = []
    for turn in range(n):
        arrivals = trace(REQUESTS, SEED + turn)
        span = sum(one.prompt + one.answer for one in arrivals) / (capacity * LOAD)
        both = {}
        for engine, other in ((ours, peer), (peer, ours))[:: -1 if turn % 2 else 1]:
            _alone(engine, other)
            both[engine is ours] = replay(engine, arrivals, ids, span)
        found.append((both[True], both[False]))

    def late(name: str, seconds: Callable[[Replayed], float]) -> Figure:
        return against(name, "ms", PEER, [(seconds(a) * 1e3, seconds(b) * 1e3) for a, b in found])

    flow = [(a.throughput, b.throughput) for a, b in found]
    return [
        late("p95_inter_token", lambda run: run.gap(0.95)),
        late("p99_inter_token", lambda run: run.gap(0.99)),
        late("longest_stall_median", lambda run: run.stall),
        against("load_throughput", "tokens/s", PEER, flow, lower_is_better=False),
        late("load_first_token_p50", lambda run: percentile(run.first, 0.5)),
        late("load_first_token_p95", lambda run: percentile(run.first, 0.95)),
    ]


def _alone(engine: Engine, other: Engine) -> None:
    """Only the engine that is measured holds OpenMP workers."""
    assert engine is not other and isinstance(other, NativeEngine)
    release_workers()
    quiet(other)
