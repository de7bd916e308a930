"""The native engine on the default model, bfloat16: speed and memory against named peers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import cached_property

from inference.engine import NativeConfig
from inference.errors import UnknownName
from inference.native.engine import NativeEngine
from inference.suggest import nearest
from tests.bench import peers
from tests.bench.arrivals import inter_token
from tests.bench.decode import Transformers, against_process, against_transformers
from tests.bench.figures import Figure
from tests.bench.memory import peak_memory
from tests.bench.overheads import grammar_overhead, idealized, prefix_reuse

Row = Callable[["Bench"], list[Figure]]


def run(*, n: int = 4, only: Collection[str] = ()) -> list[Figure]:
    """The rows named in `only`, or all: `n` measurements each, fewer where one takes long."""
    for name in only:
        if name not in ROWS:
            raise UnknownName(f"unknown row {name!r} of benchmark 'engine'; {nearest(name, ROWS)}")
    figures = []
    with Bench(n) as bench:
        for name, row in ROWS.items():
            if not only or name in only:
                began = time.perf_counter()
                figures += row(bench)
                print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return figures


class Bench(ExitStack):
    """What rows share, opened by the first that needs it and closed at the end."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.half = max(n // 2, 1)

    @cached_property
    def engine(self) -> NativeEngine:
        """Ours, which computes every prompt."""
        engine = NativeConfig(dtype="bfloat16", prefix_cache_bytes=0).open()
        assert isinstance(engine, NativeEngine)
        self.callback(engine.close)
        return engine

    @cached_property
    def transformers(self) -> Transformers:
        """transformers in this process."""
        return Transformers()

    @cached_property
    def vllm(self) -> peers.Peer | None:
        """vLLM in a process of its own."""
        return self._started(peers.vllm())

    @cached_property
    def llamacpp(self) -> peers.Peer | None:
        """llama.cpp in a process of its own."""
        return self._started(peers.llamacpp())

    def _started(self, peer: peers.Peer | None) -> peers.Peer | None:
        return peer and self.enter_context(peer)


def _static(bench: Bench, name: str, batch: int, n: int) -> list[Figure]:
    return [against_transformers(name, bench.engine, bench.transformers, batch, n)]


def _vllm(bench: Bench, name: str, batch: int, n: int) -> list[Figure]:
    return [against_process(name, bench.engine, "vLLM for CPU", bench.vllm, batch, n)]


def _llamacpp(bench: Bench) -> list[Figure]:
    name, label = "decode_batch1_llamacpp", "llama.cpp, weights in 4 bits"
    return [against_process(name, bench.engine, label, bench.llamacpp, 1, bench.n)]


ROWS: dict[str, Row] = {
    "decode_batch1": lambda b: _static(b, "decode_batch1", 1, b.n),
    "decode_batch16": lambda b: _static(b, "decode_batch16", 16, b.half),
    "decode_batch1_vllm": lambda b: _vllm(b, "decode_batch1_vllm", 1, b.n),
    "decode_batch16_vllm": lambda b: _vllm(b, "decode_batch16_vllm", 16, b.half),
    "decode_batch1_llamacpp": _llamacpp,
    "p95_inter_token": lambda b: inter_token(b.half),
    "prefix_reuse": lambda b: [prefix_reuse(b.n)],
    "grammar_overhead": lambda b: [grammar_overhead(b.engine, 2 * b.n)],
    "peak_memory": lambda b: peak_memory(b.half),
    "idealized": lambda b: idealized(b.engine, b.n),
}
