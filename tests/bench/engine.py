"""The native engine against transformers' `generate` on the default model, greedy, bfloat16."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

from inference import FinishReason, Request, SamplingParams
from inference.engine import NativeConfig
from inference.idealized import IdealizedRuntime
from inference.models import load_tokenizer, resolve
from inference.native.engine import NativeEngine
from tests.bench.figures import Figure, against, pairs

TOKENS = 48
CONTEXT = 2000
PEER = "transformers generate"
LENGTHS = (8, 32, 64, 128, 256)
OUTPUTS = (1, 4, 8, 16)
TEXT = (
    "The harbour master kept a ledger of every ship, its cargo and the hour at which it came in, "
    "and in the margins he wrote what the captains told him about the weather further out. "
)


def run(*, n: int = 4) -> list[Figure]:
    """Decoding at batch 1 and 16, reuse of a prefix, and the fit of the idealized runtime."""
    engine = NativeConfig(dtype="bfloat16", prefix_cache_bytes=0).open()
    assert isinstance(engine, NativeEngine)
    peer = _Peer()
    try:
        return [
            _decode("decode_batch1", engine, peer, 1, n),
            _decode("decode_batch16", engine, peer, 16, max(n // 2, 2)),
            _prefix_reuse(n),
            *_idealized(engine),
        ]
    finally:
        engine.close()


class _Peer:
    """transformers on the same checkpoint, same type, left-padded static batch."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = resolve("default")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def tokens_per_second(self, prompts: Sequence[str]) -> float:
        """Completion tokens a second; every row produces exactly TOKENS."""
        batch = self.tokenizer(list(prompts), return_tensors="pt", padding=True)
        began = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                **batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
            )
        return len(prompts) * TOKENS / (time.perf_counter() - began)


def _prompts(count: int) -> list[str]:
    """Prompts of different lengths that a model goes on with for long."""
    return [f"Chapter {at + 1}. {TEXT}" + " ".join(TEXT.split()[: at % 7]) for at in range(count)]


def _decode(name: str, engine: NativeEngine, peer: _Peer, batch: int, n: int) -> Figure:
    prompts = _prompts(batch)

    def ours() -> float:
        requests = [Request(prompt=p, sampling=SamplingParams(max_tokens=TOKENS)) for p in prompts]
        began = time.perf_counter()
        outputs = engine.generate(requests)
        seconds = time.perf_counter() - began
        ended = [output for output in outputs if output.finish_reason is not FinishReason.LENGTH]
        assert not ended, "a prompt of the benchmark must not end early"
        return batch * TOKENS / seconds

    measured = pairs(ours, lambda: peer.tokens_per_second(prompts), n)
    return against(name, "tokens/s", PEER, measured, lower_is_better=False)


def _prefix_reuse(n: int) -> Figure:
    """Prefill seconds of a second question over the same context, against recomputing it."""
    engine = NativeConfig(dtype="bfloat16").open()
    assert isinstance(engine, NativeEngine)
    context = (TEXT * (CONTEXT // 20))[: CONTEXT * 4]
    measured = []
    for turn in range(n):
        engine.forget_prefixes()
        first, second = (
            engine.generate(
                [
                    Request(
                        prompt=f"Volume {turn}. {context} {question}",
                        sampling=SamplingParams(max_tokens=1),
                    )
                ]
            )[0]
            for question in ("Who kept the ledger?", "What stood in the margins?")
        )
        assert second.usage.cached_tokens > 0.9 * first.usage.prompt_tokens
        measured.append((second.stats.prefill_seconds * 1e3, first.stats.prefill_seconds * 1e3))
    engine.close()
    return against("prefix_reuse", "ms", "recomputing", measured)


def _idealized(engine: NativeEngine) -> list[Figure]:
    """Fit on every other prompt length, predict the lengths between; the figure is the error."""
    ids = load_tokenizer("default").encode(TEXT * 40).ids

    def seconds(prompt: int, output: int) -> float:
        request: Any = Request(token_ids=ids[:prompt], sampling=SamplingParams(max_tokens=output))
        return engine.generate([request])[0].stats.seconds

    grid = {
        (p, o): statistics.median(seconds(p, o) for _ in range(3))
        for p, o in product(LENGTHS, OUTPUTS)
    }
    known = set(LENGTHS[1::2])
    model = IdealizedRuntime.fit({at: value for at, value in grid.items() if at[0] in known})
    errors = [
        abs(model.seconds(p, o) - value) / value for (p, o), value in grid.items() if p not in known
    ]
    return [
        Figure("idealized_per_token", model.per_token * 1e3, "ms", n=len(grid)),
        Figure("idealized_r_squared", model.r_squared, "", n=len(grid)),
        Figure("idealized_error_held_out", statistics.median(errors), "share", n=len(errors)),
    ]
