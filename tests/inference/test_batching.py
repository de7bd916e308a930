"""Batching changes nothing: the same tokens alone, in any mix and budget, after preemption."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference import FinishReason, InferenceError, InferenceInputError, Message, Request
from inference.engine import NativeConfig
from inference.native.blocks import BLOCK
from inference.native.engine import NativeEngine
from inference.native.prompts import encode
from inference.native.sequence import Sequence
from inference.requests import Output, SamplingParams
from tests.inference.tiny import checkpoint, network

WORDS = ["river", "fox", "東京", "keys and values", "a", "The quick brown", "naïve", "north", "🙂"]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("mistral", {"sliding_window": 20}),
    ("qwen3", {"head_dim": 16}),
]
COUNT = 52


def requests_for(seed: int, count: int = COUNT, **sampling: Any) -> list[Request]:
    """Prompts of 1 to about 80 tokens, every third beginning like another."""
    draw = random.Random(seed)
    found = []
    for n in range(count):
        text = " ".join(draw.choices(WORDS, k=draw.choice([1, 3, 6, 12])))
        if n % 3 == 0:
            text = "The quick brown fox jumps over the lazy dog while the river runs " + text
        params = SamplingParams(**{"max_tokens": draw.randint(1, 24), **sampling})
        found.append(Request(prompt=text, sampling=params, id=f"r{n}"))
    return found


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[NativeEngine]:
    config = NativeConfig(model=str(folder), dtype="float32", device="cpu", **options)
    with closing(NativeEngine.from_config(config)) as engine:
        yield engine
        blocks = engine._core().blocks
        assert (blocks.used, blocks.free) == (0, blocks.capacity)


def tokens(outputs: list[Output]) -> dict[str, tuple[int, ...]]:
    return {output.id: output.token_ids for output in outputs}


def reference(engine: NativeEngine, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    """What transformers generates, one request after the other."""
    found = {}
    for request in requests:
        ids = torch.tensor([encode(engine._model(), request)])
        out = network(engine.model).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.sampling.max_tokens,
            do_sample=False,
        )
        found[request.id] = tuple(out[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_greedy_is_the_same_however_it_is_batched(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path, kind, seed=4, **options)
    requests = requests_for(len(kind))
    with opened(folder) as engine:
        wanted = reference(engine, requests)
        assert len(set(wanted.values())) > COUNT // 2
        assert tokens(engine.generate(requests)) == wanted
        again = engine.generate(requests)  # from the prefix cache
        assert tokens(again) == wanted
        assert sum(output.usage.cached_tokens for output in again) > 0
    with opened(folder, prefix_cache_bytes=0) as engine:
        alone = [engine.generate([request])[0] for request in requests]
        assert tokens(alone) == wanted
        assert all(output.usage.cached_tokens == 0 for output in alone)
    for budget in (1, 7, 64, 10**6):
        with opened(folder, step_tokens=budget, step_rows=17) as engine:
            assert tokens(engine.generate(requests)) == wanted


@pytest.mark.parametrize("prefix_cache_bytes", [0, 2**20])
@pytest.mark.parametrize(("kind", "options"), VARIANTS[:3])
def test_preemption_changes_no_token(
    tmp_path: Path, kind: str, options: dict[str, Any], prefix_cache_bytes: int
) -> None:
    folder = checkpoint(tmp_path, kind, seed=4, endless=True, **options)
    requests = requests_for(3, count=24, max_tokens=60)
    with opened(folder) as engine:
        wanted = tokens(engine.generate(requests))
    cramped = {"kv_cache_bytes": 1, "prefix_cache_bytes": prefix_cache_bytes, "step_tokens": 40}
    with opened(folder, **cramped) as engine:
        core = engine._core()
        assert core.blocks.capacity == 256 // BLOCK  # one context, for 24 requests
        preempted: list[object] = []
        preempt = core.scheduler.preempt

        def counted(seq: Sequence) -> None:
            preempted.append(seq)
            preempt(seq)

        core.scheduler.preempt = counted  # type: ignore[method-assign]
        assert tokens(engine.generate(requests)) == wanted
        assert len(preempted) > 5


def test_a_seed_gives_the_same_tokens_in_any_batch(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, endless=True)
    requests = [
        replace(r, sampling=SamplingParams(max_tokens=20, temperature=1.2, top_p=0.9, seed=n))
        for n, r in enumerate(requests_for(1, count=30))
    ]
    with opened(folder, prefix_cache_bytes=0) as engine:
        wanted = tokens([engine.generate([request])[0] for request in requests])
    for options in ({}, {"step_tokens": 7}, {"kv_cache_bytes": 1}):
        with opened(folder, **options) as engine:
            assert tokens(engine.generate(requests[::-1])) == wanted


def test_aborts_change_nobody_else_and_give_their_blocks_back(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, endless=True)
    requests = requests_for(7, count=100, max_tokens=40)
    draw = random.Random(0)
    doomed = draw.sample([request.id for request in requests], 30)
    with opened(folder) as engine:
        wanted = tokens(engine.generate(requests))
    with opened(folder, step_tokens=48) as engine:
        first = threading.Event()
        outputs: list[Output] = []

        def collect() -> None:
            outputs.extend(engine.generate(requests, on_output=lambda _: first.set()))

        def abort() -> None:
            for request_id in doomed:
                engine.abort(request_id)
                first.wait(0.005)

        workers = [threading.Thread(target=collect), threading.Thread(target=abort)]
        workers[0].start()
        while not engine.abort(doomed[0]):
            pass
        workers[1].start()
        for worker in workers:
            worker.join(120)
        aborted = {o.id for o in outputs if o.finish_reason is FinishReason.ABORTED}
        assert aborted and aborted <= set(doomed)
        for output in outputs:
            assert output.token_ids == wanted[output.id][: len(output.token_ids)]
            if output.id not in aborted:
                assert output.token_ids == wanted[output.id]
        assert len(outputs) == 100


def test_scores_are_the_same_when_blocks_run_out(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, context=64)
    request = Request(token_ids=[5 + n for n in range(33)])
    continuations = [[7 * n + k for k in range(1 + 3 * n)] for n in range(10)]
    with opened(folder) as engine:
        wanted = engine.score(request, continuations)
    with opened(folder, kv_cache_bytes=1, step_tokens=5) as engine:
        found = engine.score(request, continuations)
        for mine, other in zip(found, wanted, strict=True):
            assert mine.token_ids == other.token_ids
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_step_that_fails_fails_its_requests_and_no_later_one(tmp_path: Path) -> None:
    with opened(checkpoint(tmp_path)) as engine:
        requests = requests_for(2, count=4)
        wanted = tokens(engine.generate(requests))
        runner = engine._core().runner
        step = runner.step

        def broken(*_: object) -> Any:
            raise InferenceError("out of memory")

        runner.step = broken  # type: ignore[method-assign]
        with pytest.raises(InferenceError, match="out of memory"):
            engine.generate(requests)
        runner.step = step  # type: ignore[method-assign]
        assert tokens(engine.generate(requests)) == wanted


def test_closing_ends_what_runs(tmp_path: Path) -> None:
    engine = NativeEngine.from_config(
        NativeConfig(
            model=str(checkpoint(tmp_path, endless=True, context=100_000)),
            dtype="float32",
            device="cpu",
        )
    )
    request = Request(prompt="fox", sampling=SamplingParams(max_tokens=90_000), id="r")
    outputs: list[Output] = []
    worker = threading.Thread(target=lambda: outputs.extend(engine.generate([request])))
    worker.start()
    while "r" not in engine._admission().running or not engine._core().scheduler.running:
        pass
    engine.close()
    worker.join(60)
    assert [o.finish_reason for o in outputs] == [FinishReason.ABORTED]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, r"layers of type \['chunked"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "scales its positions by 'dynamic'",
        ),
    ],
)
def test_models_a_batch_cannot_be_right_with_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = checkpoint(tmp_path, **options)
    with pytest.raises(InferenceInputError, match=message), opened(folder):
        pass


@pytest.mark.parametrize("name", ["step_tokens", "step_rows", "kv_cache_bytes"])
def test_a_budget_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        NativeConfig.model_validate({name: 0})


@pytest.mark.default_model
def test_default_model_in_a_batch(default_engine: NativeEngine) -> None:
    texts = ["Name a colour.", "What is 2 + 2?", "Write one line about rain.", "Who wrote Faust?"]
    requests = [
        Request(messages=[Message("user", t)], sampling=SamplingParams(max_tokens=16), id=t)
        for t in texts
    ]
    wanted = reference(default_engine, requests)
    assert tokens(default_engine.generate(requests)) == wanted
    assert tokens([default_engine.generate([request])[0] for request in requests]) == wanted
