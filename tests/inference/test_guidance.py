"""Guidance: two contexts, one continuation; the tokens two separate forwards would give."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference import FinishReason, Grammar, InferenceInputError, Message, Request
from inference.adapters.lora import Adapter
from inference.errors import PromptTooLong, UnknownName
from inference.guidance import GUIDANCE, Context, ContextAware
from inference.kv import StreamingLLM
from inference.native.engine import NativeEngine
from inference.native.prompts import encode
from inference.requests import Output, SamplingParams
from tests.inference.hooked import carrying
from tests.inference.test_batching import VARIANTS, opened, requests_for, tokens
from tests.inference.tiny import checkpoint, network

WITHOUT = ["fox", "The quick brown fox jumps over the lazy dog while the river runs north " * 2]


def guided(count: int = 10, weight: float = 0.8, **options: Any) -> list[Request]:
    """Requests whose other context is now shorter, now longer."""
    return [
        replace(
            request,
            guidance=ContextAware(Context(prompt=WITHOUT[n % 2]), weight),
            **options,
        )
        for n, request in enumerate(requests_for(5, count=count, max_tokens=12))
    ]


def separate(engine: NativeEngine, request: Request) -> tuple[int, ...]:
    """Greedy tokens of (1 + w) with - w without, from two forwards of transformers a token."""
    guidance = request.guidance
    assert isinstance(guidance, ContextAware)
    model, stop = network(engine.model), engine._model().stop_ids
    first = encode(engine._model(), request)
    other = encode(engine._model(), Request(guidance.without.prompt, None, None))
    produced: list[int] = []
    with torch.no_grad():
        while len(produced) < request.sampling.max_tokens and not stop & set(produced):
            with_it, without = (
                model(torch.tensor([[*ids, *produced]])).logits[0, -1] for ids in (first, other)
            )
            mixed = with_it + guidance.weight * (with_it - without)
            produced.append(int(mixed.argmax()))
    return tuple(produced)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_tokens_are_those_of_separate_forwards(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path, kind, seed=4, **options)
    requests = guided()
    bare = [replace(request, guidance=None) for request in requests]
    with opened(folder) as engine:
        wanted = {request.id: separate(engine, request) for request in requests}
        unguided = tokens(engine.generate(bare))
        assert unguided != wanted
        assert tokens(engine.generate(guided(weight=0.0))) == unguided
        mixed = [*requests, *(replace(request, id=f"bare {request.id}") for request in bare)]
        found = tokens(engine.generate(mixed))
        assert {key: found[key] for key in wanted} == wanted
        assert {key: found[f"bare {key}"] for key in wanted} == unguided
    with opened(folder, prefix_cache_bytes=0) as engine:
        assert tokens([engine.generate([request])[0] for request in requests]) == wanted
    for settings in ({"step_tokens": 1}, {"step_tokens": 7, "step_rows": 1}, {"step_rows": 3}):
        with opened(folder, **settings) as engine:
            assert tokens(engine.generate(requests)) == wanted


def test_preemption_takes_a_request_with_its_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path, endless=True, seed=4)
    requests = [replace(r, sampling=SamplingParams(max_tokens=50)) for r in guided()]
    with opened(folder) as engine:
        wanted = tokens(engine.generate(requests))
    with opened(folder, kv_cache_bytes=1, step_tokens=40) as engine:
        scheduler, taken = engine._core().scheduler, []
        preempt = scheduler.preempt

        def counted(seq: Any) -> None:
            taken.append(seq)
            preempt(seq)

        monkeypatch.setattr(scheduler, "preempt", counted)
        assert tokens(engine.generate(requests)) == wanted
        assert taken


def test_two_that_each_just_fit_do_not_block_each_other(tmp_path: Path) -> None:
    """Each needs the whole store for its two contexts, so half of each must never be inside."""
    folder = checkpoint(tmp_path, endless=True)
    ids = [5 + n % 300 for n in range(63)]
    requests = [
        Request(
            token_ids=[n, *ids],
            guidance=ContextAware(Context(token_ids=[9, n, *ids[1:]])),
            sampling=SamplingParams(max_tokens=64),
        )
        for n in (10, 11)
    ]
    with opened(folder) as engine:
        wanted = [output.token_ids for output in engine.generate(requests)]
    with opened(folder, kv_cache_bytes=1, step_tokens=9) as engine:
        assert engine._core().blocks.capacity == 16  # two contexts of 128 tokens
        outputs: list[Output] = []
        workers = [
            threading.Thread(target=lambda r=r: outputs.extend(engine.generate([r])))  # type: ignore[misc]
            for r in requests
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        found = {output.id: output.token_ids for output in outputs}
        assert [found[request.id] for request in requests] == wanted


def test_a_context_carries_its_own_adapters(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, endless=True)
    model = network(str(folder))
    with opened(folder) as engine:
        shape = engine.adapters.shape
        out, width = shape.sizes["q_proj"]
        torch.manual_seed(3)
        made = [
            engine.attach(
                name,
                Adapter.from_tensors(
                    name, {(1, "q_proj"): (torch.randn(2, width), torch.randn(out, 2))}, 0.3, shape
                ),
            )
            for name in ("one", "two")
        ]
        ids = [40, 50, 60, 70]
        request = Request(
            token_ids=ids,
            adapters=("one",),
            guidance=ContextAware(Context(token_ids=ids, adapters=("two",)), 1.5),
            sampling=SamplingParams(max_tokens=8),
        )
        found = engine.generate([request])[0].token_ids
        produced: list[int] = []
        for _ in range(8):
            rows = []
            for adapter in made:
                with carrying(model, adapter), torch.inference_mode():
                    rows.append(model(torch.tensor([[*ids, *produced]])).logits[0, -1])
            produced.append(int((2.5 * rows[0] - 1.5 * rows[1]).argmax()))
        assert found == tuple(produced)
        assert found != engine.generate([replace(request, guidance=None)])[0].token_ids


def test_the_grammar_has_the_last_word(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, endless=True)
    grammar = Grammar.regex("[a-d]{4,12}(ef|gh)")
    requests = guided(6, grammar=grammar)
    requests = [replace(r, sampling=SamplingParams(max_tokens=40)) for r in requests]
    with opened(folder) as engine:
        outputs = engine.generate(requests)
        for output in outputs:
            assert output.finish_reason is FinishReason.STOP
            assert re.fullmatch(r"[a-d]{4,12}(ef|gh)", output.text)
        plain = engine.generate([replace(request, guidance=None) for request in requests])
        assert tokens(plain) != tokens(outputs)


def test_usage_counts_every_context(tmp_path: Path) -> None:
    with opened(checkpoint(tmp_path)) as engine:
        guidance = ContextAware(Context(token_ids=[9] * 20))
        request = Request(
            token_ids=[8] * 5, guidance=guidance, sampling=SamplingParams(max_tokens=3)
        )
        assert engine.generate([request])[0].usage.prompt_tokens == 25


def ask(**options: Any) -> Request:
    return Request(prompt="fox", **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Context(), InferenceInputError, "gives nothing"),
        (lambda: Context(prompt="a", token_ids=[1]), InferenceInputError, "prompt.*token_ids"),
        (lambda: ContextAware(Context("a"), -1.0), InferenceInputError, "weight=-1.0"),
        (lambda: ContextAware(Context("a"), float("nan")), InferenceInputError, "weight=nan"),
        (lambda: ask(guidance=ContextAware(Context("fox" * 400))), PromptTooLong, "a guiding"),
        (
            lambda: ask(guidance=ContextAware(Context("a", adapters=("nobody",)))),
            UnknownName,
            "nobody",
        ),
        (
            lambda: ask(guidance=ContextAware(Context(token_ids=[99_999]))),
            InferenceInputError,
            "a guiding context.*99999",
        ),
        (
            lambda: ask(guidance=ContextAware(Context("a")), kv=StreamingLLM()),
            InferenceInputError,
            "guidance with a KV policy",
        ),
        (
            lambda: ask(guidance=ContextAware(Context("a")), skip_layers=(0, 1)),
            InferenceInputError,
            "guidance with skipped layers",
        ),
    ],
)
def test_refusals(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    with opened(checkpoint(tmp_path, context=64)) as engine:
        with pytest.raises(error, match=message):
            engine.generate([make(), ask()])
        assert engine.generate([ask(sampling=SamplingParams(max_tokens=2))])[0].token_ids
        with pytest.raises(InferenceInputError, match="guidance, under which a score"):
            engine.score(ask(guidance=ContextAware(Context("a"))), ["b"])


def test_a_dialogue_as_context(tmp_path: Path) -> None:
    with opened(checkpoint(tmp_path, endless=True)) as engine:
        said = [Message("user", "fox")]
        request = Request(messages=said, sampling=SamplingParams(max_tokens=6))
        same = ContextAware(Context(messages=said), 2.0)
        wanted = engine.generate([request])[0].token_ids  # equal contexts cancel out
        assert engine.generate([replace(request, guidance=same)])[0].token_ids == wanted


def test_a_rule_that_breaks_fails_its_request_only(tmp_path: Path) -> None:
    class Broken:
        contexts = (Context(prompt="a"),)

        def combine(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
            return logits[0] * float("nan")

    with opened(checkpoint(tmp_path)) as engine:
        bad, good = engine.generate(
            [ask(guidance=Broken()), ask(sampling=SamplingParams(max_tokens=4))]
        )
        assert bad.finish_reason is FinishReason.FAILED
        assert bad.notes["error"]["code"] == "broken_logits"
        assert len(good.token_ids) <= 4 and good.finish_reason is not FinishReason.FAILED


def test_the_table_names_its_rows() -> None:
    assert {"context_aware": ContextAware} == GUIDANCE
