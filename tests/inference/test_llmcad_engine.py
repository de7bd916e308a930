"""LLMCad in the engine: whatever the small model is, the tokens are those of plain decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference import Grammar, Message, Request
from inference.native.engine import NativeEngine
from inference.requests import SamplingParams
from inference.speculative.llmcad import LLMCad
from tests.inference.test_batching import opened, requests_for, tokens
from tests.inference.test_engine_adapters import save
from tests.inference.tiny import POISON, checkpoint

Folders = Callable[[int], Path]
KINDS: list[dict[str, Any]] = [
    {"model": 1},
    {"model": 0, "update": "printed"},
    {"layers": 1},
    {"layers": 2, "alpha": 1.0, "branch": 0.1},
    {"model": 0, "alpha": 0.0, "nodes": 9, "branch": 0.05},
    {"model": 1, "update": "fixed", "alpha": 0.2, "nodes": 1},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Tiny models by seed, with one tokenizer."""

    @lru_cache
    def get(seed: int) -> Path:
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        return checkpoint(folder, seed=seed, context=160)

    return get


def drafter(folders: Folders, options: dict[str, Any]) -> LLMCad:
    named = {"model": str(folders(options["model"]))} if "model" in options else {}
    return LLMCad(**{"adaptive": False, **options, **named})


def asked(count: int, **sampling: Any) -> list[Request]:
    return requests_for(3, count=count, **sampling)


def compare(
    engine: NativeEngine, requests: list[Request], drafter: LLMCad, rows: int = 16
) -> tuple[int, int]:
    """Asserts that a drafter changes no token; how many tokens were drafted and accepted."""
    wanted, drafted, accepted = tokens(engine.generate(requests)), 0, 0
    for at in range(0, len(requests), rows):
        some = [replace(one, drafter=drafter) for one in requests[at : at + rows]]
        for output in engine.generate(some):
            assert output.token_ids == wanted[output.id]
            notes = output.notes["drafter"]
            assert isinstance(notes, dict)
            assert (notes["name"], notes["rule"], notes["lossless"]) == ("llmcad", "match", True)
            assert notes["provisional"] == "off, weights are resident"
            drafted += output.stats.drafted
            accepted += output.stats.accepted
    return drafted, accepted


@pytest.mark.parametrize(
    "options", KINDS, ids=lambda one: ",".join(f"{k}={v}" for k, v in one.items())
)
def test_greedy_and_seeded_tokens_are_those_of_plain_decoding(
    folders: Folders, options: dict[str, Any]
) -> None:
    """In batches of 1, 4 and 16 of different lengths, with much room and with little."""
    small, seen = drafter(folders, options), []
    with opened(folders(0)) as engine:
        for rows in (16, 4, 1):
            seen.append(compare(engine, asked(16), small, rows))
        sampled = SamplingParams(max_tokens=12, temperature=1.0, seed=5)
        seen.append(compare(engine, [replace(one, sampling=sampled) for one in asked(16)], small))
    cramped = {"step_tokens": 20, "prefix_cache_bytes": 0, "kv_cache_bytes": 1}
    with opened(folders(0), **cramped) as engine:  # rows are preempted and come back
        seen.append(compare(engine, asked(16), small))
    assert min(drafted for drafted, _ in seen) > 0
    if options.get("model") == 0 or options.get("layers") == 2:  # the model drafts for itself
        assert sum(accepted for _, accepted in seen) > 100


def test_grammars_and_adapters_go_with_it(folders: Folders, tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"enum": ["fox", "dog"]}, "maxItems": 5}
    grammar = Grammar.json_schema(schema)
    save(folders(0), tmp_path / "a", 7, r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"])
    with opened(folders(0)) as engine:
        engine.attach("a", tmp_path / "a")
        for options in KINDS[:5]:
            requests = [
                replace(
                    request,
                    grammar=grammar if at % 2 else None,
                    adapters=("a",) if at % 3 else (),
                )
                for at, request in enumerate(asked(12, max_tokens=30))
            ]
            assert compare(engine, requests, drafter(folders, options))[0] > 0


def test_without_memory_the_answer_is_plain_and_says_so(folders: Folders) -> None:
    small = drafter(folders, {"layers": 1, "cache_bytes": 0})
    with opened(folders(0)) as engine:
        (request,) = asked(1, max_tokens=8)
        (wanted,) = engine.generate([request])
        (found,) = engine.generate([replace(request, drafter=small)])
    assert found.token_ids == wanted.token_ids and found.stats.drafted == 0
    notes = found.notes["drafter"]
    assert isinstance(notes, dict)
    assert notes["fallback"] == "plain decoding: the small model lacks memory"


def test_a_broken_small_model_breaks_no_answer(folders: Folders, tmp_path: Path) -> None:
    broken = checkpoint(tmp_path, seed=1, context=160, poison=math.nan)
    small = LLMCad(model=str(broken), adaptive=False)
    params = SamplingParams(max_tokens=6)
    with opened(folders(0)) as engine:
        requests = [Request(token_ids=[5, at], sampling=params) for at in (POISON, 6)]
        wanted = engine.generate(requests)
        found = engine.generate([replace(one, drafter=small) for one in requests])
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    notes = found[0].notes["drafter"]
    assert isinstance(notes, dict)
    assert notes["fallback"] == "plain decoding: the small model lacks sound numbers"
    assert [one.stats.drafted > 0 for one in found] == [False, True]  # its neighbour is drafted for


def test_trees_save_target_passes_where_the_small_model_is_right(folders: Folders) -> None:
    """A tree's node that is accepted is a pass of the target less, and nothing else is."""
    small = drafter(folders, {"model": 0, "branch": 0.2})
    params = SamplingParams(max_tokens=24)
    request = Request(token_ids=[5, 6, 7], sampling=params)
    with opened(folders(0)) as engine:
        (plain,) = engine.generate([request])
        (found,) = engine.generate([replace(request, drafter=small)])
    assert found.token_ids == plain.token_ids
    assert plain.stats.forwards - found.stats.forwards == found.stats.accepted > 4
    notes = found.notes["drafter"]
    assert isinstance(notes, dict)
    calls = notes["target_calls_per_token"]
    assert 0 < calls < 1


def test_trees_accept_more_than_chains_of_as_many_tokens(folders: Folders, tmp_path: Path) -> None:
    """The paper's baseline, chains of a fixed length; the small model is the target with noise."""
    small = checkpoint(tmp_path / "noisy", seed=0, context=160)
    noisy = AutoModelForCausalLM.from_pretrained(small)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    noisy.save_pretrained(small)
    chain = {"branch": 1.0, "alpha": 0.0, "update": "fixed"}
    found: dict[int, tuple[int, int]] = {}
    with opened(folders(0)) as engine:
        requests = [replace(one, sampling=SamplingParams(max_tokens=40)) for one in asked(12)]
        for length in (0, 3, 4, 8):
            options = {**chain, "nodes": length, "depth": length} if length else {"branch": 0.1}
            drafter_ = LLMCad(model=str(small), adaptive=False, **options)  # type: ignore[arg-type]
            found[length] = compare(engine, requests, drafter_)
    drafted, accepted = found.pop(0)
    assert drafted < found[4][0]
    assert all(accepted > others for _, others in found.values())


@pytest.mark.default_model
def test_the_default_model_answers_as_it_does_alone(default_engine: NativeEngine) -> None:
    """Float32, an early exit behind most of the layers."""
    asked_ = ("Name three rivers.", "Why is the sky blue?", "Write a line about the sea.")
    requests = [
        Request(messages=[Message("user", text)], sampling=SamplingParams(max_tokens=16), id=text)
        for text in asked_
    ]
    drafted, accepted = compare(default_engine, requests, LLMCad(layers=28, adaptive=False))
    assert drafted > accepted > 0
