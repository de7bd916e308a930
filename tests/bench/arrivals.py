"""Requests that arrive while others are answered, under two schedules of the same engine.

Arrivals are a Poisson process; lengths of prompts and answers are log-normal, with the long prompts
and short answers of retrieval-augmented generation (the load of DeepSpeed FastGen, arXiv
2401.08671, uses the same distributions).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from inference import Request, SamplingParams
from inference.engine import Engine, NativeConfig
from inference.native.engine import NativeEngine
from tests.bench.decode import quiet
from tests.bench.figures import Figure, against
from tests.bench.texts import corpus_ids, window

REQUESTS = 32
LOAD = 0.8
"""Share of the engine's capacity that the arrivals ask for."""
PROMPT = (600, 0.5, 128, 1800)
ANSWER = (40, 0.5, 8, 120)
"""Median tokens, sigma of the logarithm, least, most."""
SEED = 2401
PEER = "prefill-first scheduling"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `at` in mean service times after the first, lengths in tokens."""

    at: float
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one replay of a trace measured, in seconds; tokens are those of prompts and answers."""

    gaps: tuple[float, ...]
    first: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def trace(count: int, load: float = LOAD, seed: int = SEED) -> list[Arrival]:
    """The same arrivals for the same arguments; gaps have the mean 1 / `load`."""
    chance = random.Random(seed)

    def length(median: float, sigma: float, least: int, most: int) -> int:
        return min(max(round(chance.lognormvariate(math.log(median), sigma)), least), most)

    at, arrivals = 0.0, []
    for _ in range(count):
        arrivals.append(Arrival(at, length(*PROMPT), length(*ANSWER)))
        at += chance.expovariate(load)
    return arrivals


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def replay(engine: Engine, arrivals: Sequence[Arrival], ids: list[int], service: float) -> Replayed:
    """Send the arrivals, `service` seconds a unit, and time every piece of every answer."""
    return asyncio.run(_replay(engine, arrivals, ids, service))


async def _replay(
    engine: Engine, arrivals: Sequence[Arrival], ids: list[int], service: float
) -> Replayed:
    began = time.perf_counter()

    async def one(at: int, arrival: Arrival) -> tuple[list[float], int]:
        prompt = window(ids, at * 1009, arrival.prompt)
        request = Request(token_ids=prompt, sampling=SamplingParams(max_tokens=arrival.answer))
        await asyncio.sleep(began + arrival.at * service - time.perf_counter())
        times, tokens = [time.perf_counter()], arrival.prompt
        async for chunk in engine.stream(request):
            times.append(time.perf_counter())
            if chunk.output is not None:
                tokens += chunk.output.usage.completion_tokens
        return times, tokens

    found = await asyncio.gather(*(one(at, arrival) for at, arrival in enumerate(arrivals)))
    seconds = time.perf_counter() - began
    gaps = [later - sooner for times, _ in found for sooner, later in pairwise(times[1:])]
    first = [times[1] - times[0] for times, _ in found]
    return Replayed(tuple(gaps), tuple(first), sum(tokens for _, tokens in found), seconds)


def inter_token(n: int) -> list[Figure]:
    """P95 of the time between tokens, throughput, and time to the first token, of both."""
    options = NativeConfig(dtype="bfloat16", prefix_cache_bytes=0)
    ours, peer = options.open(), options.model_copy(update={"schedule": "prefill_first"}).open()
    try:
        return _figures(ours, peer, n)
    finally:
        ours.close()
        peer.close()


def _figures(ours: Engine, peer: Engine, n: int) -> list[Figure]:
    ids, arrivals = corpus_ids(), trace(REQUESTS)
    # All at once: how long a request takes at capacity. Both sides run once unmeasured with it.
    burst = [Arrival(0.0, one.prompt, one.answer) for one in arrivals[: REQUESTS // 4]]
    took = []
    for engine in (peer, ours):
        began = time.perf_counter()
        _alone(engine, ours, peer)
        replay(engine, burst, ids, 0.0)
        took.append(time.perf_counter() - began)
    service = min(took) / len(burst)
    found: list[tuple[Replayed, Replayed]] = []
    for turn in range(n):
        order = (ours, peer) if turn % 2 == 0 else (peer, ours)
        by_engine = {}
        for engine in order:
            _alone(engine, ours, peer)
            by_engine[id(engine)] = replay(engine, arrivals, ids, service)
        found.append((by_engine[id(ours)], by_engine[id(peer)]))

    def late(run: Replayed) -> float:
        return percentile(run.gaps, 0.95) * 1e3

    def first(share: float) -> list[tuple[float, float]]:
        return [
            (percentile(a.first, share) * 1e3, percentile(b.first, share) * 1e3) for a, b in found
        ]

    flow = [(a.throughput, b.throughput) for a, b in found]
    return [
        against("p95_inter_token", "ms", PEER, [(late(a), late(b)) for a, b in found]),
        against("load_throughput", "tokens/s", PEER, flow, lower_is_better=False),
        against("load_first_token_p50", "ms", PEER, first(0.5)),
        against("load_first_token_p95", "ms", PEER, first(0.95)),
    ]


def _alone(engine: Engine, *all_of_them: Engine) -> None:
    """Only the engine that is measured holds OpenMP workers."""
    for other in all_of_them:
        if other is not engine:
            assert isinstance(other, NativeEngine)
            quiet(other)
