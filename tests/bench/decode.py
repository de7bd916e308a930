"""Greedy decoding in bfloat16 against transformers, vLLM and llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from inference import FinishReason, Request, SamplingParams
from inference.models import resolve
from inference.native.engine import NativeEngine
from inference.native.threads import release_workers
from inference.terminal import bars_only_on_terminal
from tests.bench.figures import Figure, against, alone, pairs
from tests.bench.peers import Peer, PeerEnded, absent
from tests.bench.texts import chapters

TOKENS = 48
TRANSFORMERS = "transformers generate"


class Transformers:
    """transformers on the same checkpoint, same type, left-padded static batch."""

    def __init__(self, name: str = "default") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = resolve(name)
        with bars_only_on_terminal():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def tokens_per_second(self, prompts: Sequence[str], tokens: int) -> float:
        """Completion tokens a second; every row produces exactly `tokens`."""
        batch = self.tokenizer(list(prompts), return_tensors="pt", padding=True)
        began = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                **batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )
        return len(prompts) * tokens / (time.perf_counter() - began)


def against_transformers(
    name: str, engine: NativeEngine, peer: Transformers, batch: int, n: int
) -> Figure:
    """Both in this process: whoever is not measured holds no OpenMP workers."""
    prompts = chapters(batch)

    def theirs() -> float:
        quiet(engine)
        return peer.tokens_per_second(prompts, TOKENS)

    measured = pairs(_ours(engine, prompts), theirs, n)
    return against(name, "tokens/s", TRANSFORMERS, measured, lower_is_better=False)


def against_process(
    name: str, engine: NativeEngine, label: str, peer: Peer | None, batch: int, n: int
) -> Figure:
    """A peer in a process of its own; without it, or where it breaks, our figure stands alone."""
    prompts = chapters(batch)
    ours = _ours(engine, prompts)
    if peer is not None:

        def theirs() -> float:
            quiet(engine)
            return peer.tokens_per_second(prompts, TOKENS)

        try:
            return against(name, "tokens/s", label, pairs(ours, theirs, n), lower_is_better=False)
        except PeerEnded as error:
            absent(error)
    ours()
    return alone(name, "tokens/s", [ours() for _ in range(n)], peer=label)


def quiet(engine: NativeEngine) -> None:
    """Return when the step thread is idle and has given its OpenMP workers back."""
    engine._core().call(release_workers)


def _ours(engine: NativeEngine, prompts: Sequence[str]) -> Callable[[], float]:
    sampling = SamplingParams(max_tokens=TOKENS)

    def once() -> float:
        release_workers()
        requests = [Request(prompt=prompt, sampling=sampling) for prompt in prompts]
        began = time.perf_counter()
        outputs = engine.generate(requests)
        seconds = time.perf_counter() - began
        ended = [output for output in outputs if output.finish_reason is not FinishReason.LENGTH]
        assert not ended, "a prompt of the benchmark must not end early"
        return len(prompts) * TOKENS / seconds

    return once
