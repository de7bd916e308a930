"""Token trees: every node sees its own path, and a kept path leaves a cache as if read in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import Grammar, Request
from inference.adapters.lora import Adapter
from inference.kv import KV_POLICIES, Full, StreamingLLM
from inference.native.blocks import BLOCK
from inference.native.compact import Compact
from inference.native.engine import NativeEngine
from inference.native.score import Reading
from inference.native.sequence import Draft
from inference.native.sequence import Sequence as Row
from inference.native.task import Job
from inference.requests import SamplingParams
from tests.inference.drafting import (
    Guessing,
    admitted,
    greedy,
    guesser,
    random_draft,
    watched,
)
from tests.inference.test_batching import VARIANTS, opened, requests_for, tokens
from tests.inference.tiny import checkpoint, network

COUNT = 24
Models = Callable[..., Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A checkpoint per family, made once."""

    @lru_cache
    def get(at: int) -> Path:
        kind, options = VARIANTS[at]
        folder = tmp_path_factory.mktemp(kind)
        return checkpoint(folder, kind, seed=4, endless=True, context=128, **options)

    return get


@lru_cache(maxsize=64)
def plain(folder: Path) -> tuple[list[Request], dict[str, tuple[int, ...]]]:
    """Requests, and what the engine answers without drafts."""
    requests = requests_for(3, count=COUNT, max_tokens=20)
    with opened(folder) as engine:
        return requests, tokens(engine.generate(requests))


def drafted(
    engine: NativeEngine,
    requests: list[Request],
    truth: dict[str, tuple[int, ...]],
    size: int = 9,
    others: list[Request] | None = None,
) -> tuple[dict[str, tuple[int, ...]], list[Guessing]]:
    """What the same requests give with random trees, while `others` run without."""
    with admitted(engine, requests) as rows:
        tasks = [
            Guessing(
                job,
                row,
                guesser(random.Random(at), truth.get(job.request.id, ()), len(job.prompt), size),
            )
            for at, (job, row) in enumerate(rows)
        ]
        with watched(engine._core()) as log:
            engine._core().add(tasks)
            if others:
                engine.generate(others)
            found = {task.job.request.id: task.result() for task in tasks}
        assert sum(log) > 0 or engine._core().scheduler.budget == 1
        return found, tasks


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 60),
    budget=st.sampled_from([3, 8, 10**6]),
    own=st.booleans(),
)
@pytest.mark.parametrize("at", range(len(VARIANTS)), ids=[kind for kind, _ in VARIANTS])
def test_every_node_has_the_logits_of_its_path(
    models: Models, at: int, seed: int, length: int, budget: int, own: bool
) -> None:
    folder, draw = models(at), random.Random(seed)
    prompt = [draw.randrange(4, 320) for _ in range(length)]

    def any_path(row: Row, _: torch.Tensor) -> list[int]:
        """Some path, wherever it lies in the draft; what the model thinks of it is no matter."""
        assert row.draft is not None
        node = draw.randint(-1, len(row.draft.ids) - 1)
        return row.draft.ancestors()[node] if node >= 0 else []

    def guess(_: list[int]) -> Draft:
        return random_draft(draw, (), draw.randint(1, 8))

    request = Request(token_ids=prompt, sampling=SamplingParams(max_tokens=12))
    with opened(folder, step_tokens=budget) as engine, admitted(engine, [request]) as rows:
        ((job, row),) = rows
        if own:
            row.cache, row.reserve = own_cache(engine, Full()), 16
        task = Guessing(job, row, guess, any_path)
        with watched(engine._core()):
            engine._core().add([task])
            produced = task.result()
        assert task.seen
        model = network(str(folder))
        with torch.no_grad():
            for seen in task.seen:
                for node in range(1 + len(seen.draft.ids)):
                    wanted = model(torch.tensor([seen.path(node)])).logits[0, -1]
                    torch.testing.assert_close(seen.logits[node], wanted, rtol=1e-3, atol=2e-3)
            end = model(torch.tensor([[*prompt, *produced[:-1]]])).logits[0, -1]
        assert int(end.argmax()) == produced[-1]


def own_cache(engine: NativeEngine, policy: Any) -> Compact:
    lean = engine._model().lean
    assert lean is not None
    return Compact(len(lean.layers), lean.kv_heads, policy, lean.rotary)


@pytest.mark.parametrize("at", range(len(VARIANTS)), ids=[kind for kind, _ in VARIANTS])
def test_drafts_change_no_token(models: Models, at: int) -> None:
    folder = models(at)
    requests, wanted = plain(folder)
    for options in ({"step_tokens": 1}, {"step_tokens": 7}, {"prefix_cache_bytes": 0}, {}):
        with opened(folder, **options) as engine:
            others = [replace(r, id=f"other {r.id}") for r in requests]
            found, tasks = drafted(engine, requests, wanted, others=others)
            assert found == wanted
            if not options:  # some drafts were right, some wrong
                kept = [kept for task in tasks for kept in task.kept]
                assert max(kept) > 1 and min(kept) == 0
                again, _ = drafted(engine, requests, wanted)  # over shared blocks
                assert again == wanted
                assert tokens(engine.generate(requests)) == wanted  # and nothing was spoilt


@pytest.mark.parametrize("prefix_cache_bytes", [0, 2**20])
def test_drafts_survive_preemption(
    models: Models, prefix_cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models(0)
    requests, wanted = plain(folder)
    cramped = {"kv_cache_bytes": 1, "prefix_cache_bytes": prefix_cache_bytes, "step_tokens": 40}
    with opened(folder, **cramped) as engine:
        scheduler, preempted = engine._core().scheduler, []
        preempt = scheduler.preempt

        def counted(seq: Row) -> None:
            preempted.append(seq)
            preempt(seq)

        monkeypatch.setattr(scheduler, "preempt", counted)
        assert engine._core().blocks.capacity == 128 // BLOCK
        found, _ = drafted(engine, requests, wanted, size=30)
        assert found == wanted and preempted


def test_a_draft_is_cut_where_blocks_end_and_takes_none_from_others(models: Models) -> None:
    """A prompt that nearly fills the store: what the drafts want beyond it is not there."""
    request = Request(token_ids=[5] * 110, sampling=SamplingParams(max_tokens=17))
    with opened(models(0), kv_cache_bytes=1) as engine:
        wanted = tokens(engine.generate([request]))
        found, tasks = drafted(engine, [request], wanted, size=60)
        assert found == wanted
        assert max(len(seen.draft.ids) for seen in tasks[0].seen) <= 18
        assert tasks[0].row.preemptions == 0


def test_forks_that_draft_never_write_into_what_they_share(models: Models) -> None:
    with opened(models(1)) as engine:
        core = engine._core()
        for length in (BLOCK, 37):
            ids = [5 + n for n in range(length)]
            request = Request(token_ids=ids, sampling=SamplingParams(max_tokens=20))
            wanted = engine.generate([request])[0].token_ids
            with admitted(engine, [request]) as rows:
                ((job, row),) = rows
                tasks = [
                    Guessing(
                        Job(request, ids),
                        Row(list(ids), salt=row.salt, prompt=length),
                        guesser(random.Random(n), wanted, length, 9),
                    )
                    for n in range(6)
                ]

                def split(parent: Row, tasks: Any = tasks, length: int = length) -> None:
                    core.fork(parent, tasks, length - 1)

                with watched(core):
                    core.add([Reading(job, row, split, lambda _: None)])
                    assert [task.result() for task in tasks] == [wanted] * 6
            engine.forget_prefixes()


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(sinks=2, recent=9)], ids=["full", "sinks"])
def test_an_own_cache_takes_drafts_that_are_refused(models: Models, policy: Any) -> None:
    """Refused drafts leave nothing behind, so the policy decides as it does without them."""
    folder = models(3)
    requests = [replace(r, kv=policy) for r in plain(folder)[0]]
    with opened(folder) as engine:
        wanted = tokens(engine.generate(requests))
        with admitted(engine, requests) as rows:
            tasks = []
            for at, (job, row) in enumerate(rows):
                if row.cache is None:
                    row.cache, row.reserve = own_cache(engine, policy), 8
                guess = guesser(random.Random(at), (), len(job.prompt), 9)
                tasks.append(Guessing(job, row, guess, lambda *_: []))
            with watched(engine._core()):
                engine._core().add(tasks)
                assert {t.job.request.id: t.result() for t in tasks} == wanted


@pytest.mark.parametrize("name", sorted(KV_POLICIES))
def test_no_policy_evicts_inside_a_tree_pass(models: Models, name: str) -> None:
    options: dict[str, Any] = {"budget": 12, "recent": 4} if name == "random" else {}
    if name == "streaming_llm":
        options = {"sinks": 2, "recent": 9}
    kind = KV_POLICIES[name]
    folder, asked = models(0), []

    class Watched(kind):  # type: ignore[misc, valid-type]
        def compress(self, cache: Any, layer: int, view: Any, *rest: Any) -> None:
            asked.append(view)
            assert view.tree is None
            assert cache.heads[layer][0].positions[-view.rows :].tolist() == list(view.positions)
            super().compress(cache, layer, view, *rest)

    requests, wanted = plain(folder)
    with opened(folder) as engine, admitted(engine, requests[:6]) as rows:
        tasks = []
        for at, (job, row) in enumerate(rows):
            row.cache, row.reserve = own_cache(engine, Watched(**options)), 8
            row.chunk = row.cache.policy.chunk
            truth = wanted[job.request.id]
            tasks.append(Guessing(job, row, guesser(random.Random(at), truth, len(job.prompt), 9)))
        engine._core().add(tasks)
        found = {task.job.request.id: task.result() for task in tasks}
        if name == "full":
            assert found == {key: wanted[key] for key in found}
        for task in tasks:
            assert task.row.cache is not None
            most = len(task.row.ids) if name == "full" else 12
            assert max(map(max, task.row.cache.entries)) <= most
        assert max(view.rows for view in asked if view.positions[0] >= 12) > 1


def test_drafts_with_adapters(models: Models) -> None:
    folder = models(2)
    requests, bare = plain(folder)
    with opened(folder) as engine:
        shape = engine.adapters.shape
        torch.manual_seed(1)
        out, width = shape.sizes["down_proj"]
        pairs = {(n, "down_proj"): (torch.randn(2, width), torch.randn(out, 2)) for n in range(2)}
        engine.attach("a", Adapter.from_tensors("a", pairs, 0.1, shape))
        mixed = [replace(r, adapters=("a",) if n % 2 else ()) for n, r in enumerate(requests)]
        wanted = tokens(engine.generate(mixed))
        assert wanted != bare
        assert drafted(engine, mixed, wanted)[0] == wanted


def test_a_grammar_masks_every_node_and_rolls_back_with_the_cache(models: Models) -> None:
    grammar = Grammar.regex(r"[a-f]{3,9}( [0-9]{2,4}){2,5}")
    request = Request(prompt="fox", grammar=grammar, sampling=SamplingParams(max_tokens=40))
    with opened(models(0)) as engine:
        output = engine.generate([request])[0]
        stop_ids = engine._model().stop_ids
        truth = [token for token in output.token_ids if token not in stop_ids]
        with admitted(engine, [request]) as rows:
            ((job, row),) = rows
            matcher = job.matcher
            assert matcher is not None
            rolled: list[int] = []

            def accept(row: Row, logits: torch.Tensor) -> list[int]:
                assert row.draft is not None and matcher is not None
                parents = [-1, *(parent + 1 for parent in row.draft.parents)]
                masks = matcher.tree_masks(parents, [0, *row.draft.ids])
                path = greedy(row, masks.apply(logits))
                kept = [row.draft.ids[at] for at in path]
                # A drafter that reads a whole branch first takes back what was not kept.
                branch = [row.draft.ids[at] for at in max(row.draft.ancestors(), key=len)]
                read = 0
                while read < len(branch) and matcher.accept(branch[read]):
                    read += 1
                same = sum(1 for _ in common(branch[:read], kept))
                matcher.rollback(read - same)
                rolled.append(read - same)
                assert all(matcher.accept(token) for token in kept[same:])
                return path

            words = engine._model().tokenizer.encode("abcdef0123456789 ")
            guess = guesser(random.Random(5), truth, len(job.prompt), 9, words)
            task = Guessing(job, row, guess, accept, matcher, stop_ids)
            engine._core().add([task])
            assert task.result() == output.token_ids
            assert max(task.kept) > 1 and max(rolled) > 0
            assert matcher.complete


def common(one: list[int], other: list[int]) -> Iterator[int]:
    """The tokens two paths begin with alike."""
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            return
        yield mine


def test_a_draft_says_what_follows_what() -> None:
    draft = Draft((7, 8, 9, 7), (-1, 0, -1, 2))
    assert draft.depths() == [1, 2, 1, 2]
    assert draft.ancestors() == [[0], [0, 1], [2], [2, 3]]
    assert draft.first(3) == Draft((7, 8, 9), (-1, 0, -1))
