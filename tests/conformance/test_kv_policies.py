"""The contract of cache policies over every row of the table, and over policies made to be odd.

The reference is `tests/inference/dense.py`: attention written plainly over transformers' modules.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference import FinishReason, InferenceError, InferenceInputError, Request, SamplingParams
from inference.engine import NativeConfig
from inference.kv import KV_POLICIES, Full, KVPolicy, Moment, Random, StreamingLLM
from inference.native.compact import Head
from inference.native.engine import NativeEngine
from inference.requests import Output
from inference.taps import Choice, Tapped, Taps
from tests.inference.dense import Dense, Entry
from tests.inference.policies import ROWS, Broken, Row, watched
from tests.inference.tiny import checkpoint, network

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("mistral", {"sliding_window": 20}),
    ("qwen3", {"head_dim": 16}),
]
PROMPT = [5 + (7 * n * n) % 300 for n in range(29)]
PRODUCED = 14
ENTRY_BYTES = 2 * 16 * 4 + 8
"""Key and value of 16 float32 numbers, and a position."""

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@contextmanager
def opened(folder: Path | str, **options: Any) -> Iterator[NativeEngine]:
    """An engine that must have all its memory back in the end."""
    config = NativeConfig(model=str(folder), dtype="float32", device="cpu", **options)
    with closing(NativeEngine.from_config(config)) as engine:
        yield engine
        blocks = engine._core().blocks
        assert (blocks.used, blocks.reserved, blocks.free) == (0, 0, blocks.capacity)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family[0])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NativeEngine]:
    kind, options = request.param
    folder = checkpoint(tmp_path_factory.mktemp(kind), kind, seed=4, endless=True, **options)
    with opened(folder) as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("one"), seed=9, endless=True)


def ask(
    policy: KVPolicy | None, ids: list[int] = PROMPT, produced: int = PRODUCED, **more: Any
) -> Request:
    params = SamplingParams(max_tokens=produced)
    return Request(token_ids=ids, sampling=params, kv=policy, **more)


def run(
    engine: NativeEngine, policy: KVPolicy | None, ids: list[int] = PROMPT
) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and the logits they were chosen from."""
    chosen: list[torch.Tensor] = []

    def see(one: Tapped | Choice) -> None:
        if isinstance(one, Choice):
            chosen.append(one.raw)

    (output,) = engine.generate([ask(policy, ids, taps=Taps(see, logits=True))])
    return list(output.token_ids), chosen


def tokens(outputs: list[Output]) -> list[tuple[int, ...]]:
    return [output.token_ids for output in outputs]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), atol=2e-4, rtol=2e-4)


def test_every_row_of_the_table_is_run_here() -> None:
    assert [row.name for row in ROWS if row.name in KV_POLICIES] == list(KV_POLICIES)
    for row in ROWS:
        if row.name in KV_POLICIES:
            assert type(row.tight) is type(row.roomy) is KV_POLICIES[row.name]


@each_row
def test_a_budget_beyond_the_length_changes_nothing(engine: NativeEngine, row: Row) -> None:
    whole = network(engine.model)
    ids = torch.tensor([PROMPT])
    wanted = whole.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=PRODUCED, do_sample=False
    )[0, len(PROMPT) :].tolist()
    found, logits = run(engine, row.roomy)
    assert found == wanted
    with torch.inference_mode():
        all_logits = whole(torch.tensor([PROMPT + wanted]), use_cache=False).logits[0]
    close(logits, list(all_logits[len(PROMPT) - 1 : -1]))


@each_row
def test_each_token_sees_exactly_what_is_kept(engine: NativeEngine, row: Row) -> None:
    with watched(engine) as looks:
        found, logits = run(engine, row.tight)
    by_length = {look.read: look for look in looks}

    def replay(layer: int, head: int, held: list[Entry], read: int) -> list[Entry]:
        """What the engine kept, for a policy whose choice is its own."""
        return [entry for entry in held if entry[2] in by_length[read].positions[layer][head]]

    rule = row.rule or replay
    dense = Dense(network(engine.model), rule, row.tight.chunk, row.tight.reindex)
    assert found == dense.generate(PROMPT, PRODUCED)
    close(logits, dense.logits)
    if row.name == "full":
        assert looks == []  # it shares the engine's store
        return
    last = looks[-1].positions
    for layer, heads in enumerate(last):
        for head, positions in enumerate(heads):
            assert positions == dense.positions(layer, head)
            assert positions == sorted(positions)


@pytest.mark.parametrize("row", [row for row in ROWS if row.sizes], ids=lambda row: row.name)
def test_sizes_are_the_budget_after_every_step_in_memory(engine: NativeEngine, row: Row) -> None:
    assert row.sizes is not None
    with watched(engine) as looks:
        (output,) = engine.generate([ask(row.tight)])
    assert looks[-1].read == len(PROMPT) + PRODUCED - 1
    for look in looks:
        counts = tuple(tuple(map(len, layer)) for layer in look.positions)
        if look.moment is Moment.PIECE:
            continue
        wanted = tuple(tuple(min(look.read, n) for n in layer) for layer in row.sizes)
        assert counts == wanted
        held = sum(map(sum, counts))
        shrunk = look.read > max(map(max, row.sizes))
        if shrunk:  # until then a head may have room for what comes
            remembered = 4 * held if row.name == "loud" else 0
            assert look.bytes == held * ENTRY_BYTES + remembered
        assert look.bytes <= look.peak
        if row.name != "loud":
            assert look.peak <= look.reserved
    assert output.stats.peak_kv_bytes == looks[-1].peak
    (whole,) = engine.generate([ask(None)])
    if row.name != "uneven":  # it reads the whole prompt before it decides
        assert output.stats.peak_kv_bytes < whole.stats.peak_kv_bytes
    mean = sum(map(sum, row.sizes)) / 4
    note = output.notes["kv"]
    assert (note["entries"], note["lossless"]) == (mean, False)
    assert note["options"] == row.tight.model_dump()
    assert note["policy"] == (row.name if row.name in KV_POLICIES else type(row.tight).__name__)


def test_random_keeps_the_recent_entries_and_draws_per_layer_and_head(folder: Path) -> None:
    with opened(folder) as engine:
        kept = {}
        for seed in (1, 1, 2):
            with watched(engine) as looks:
                engine.generate([ask(Random(budget=8, recent=3, seed=seed))])
            first = next(look for look in looks if look.moment is Moment.PROMPT)
            assert kept.setdefault(seed, first.positions) == first.positions
            for layer in first.positions:
                assert all(positions[-3:] == [26, 27, 28] for positions in layer)
    assert kept[1] != kept[2]
    assert len({tuple(one) for layer in kept[1] for one in layer}) == 4


def test_nothing_depends_on_the_step_the_batch_or_preemption(folder: Path) -> None:
    requests = [
        ask(policy, [*PROMPT[: 9 + 4 * n], 40 + n])
        for n, policy in enumerate([None, *(row.tight for row in ROWS)])
    ]
    with opened(folder, prefix_cache_bytes=0) as engine:
        wanted = [engine.generate([request])[0].token_ids for request in requests]
        assert tokens(engine.generate(requests)) == wanted
    assert len(set(wanted)) == len(wanted)
    for budget in (1, 7, 64, 10**6):
        with opened(folder, step_tokens=budget, step_rows=5) as engine:
            assert tokens(engine.generate(requests)) == wanted
    others = [ask(None, [60 + n, *PROMPT], 60) for n in range(8)]
    with opened(folder, kv_cache_bytes=1, step_tokens=40) as engine:
        preempted = []
        preempt = engine._core().scheduler.preempt

        def counted(seq: Any) -> None:
            preempted.append(seq)
            preempt(seq)

        engine._core().scheduler.preempt = counted  # type: ignore[method-assign]
        assert tokens(engine.generate([*others, *requests]))[8:] == wanted
        assert preempted and all(seq.cache is None for seq in preempted)


@each_row
def test_a_shrunken_cache_is_nobody_elses_prefix(folder: Path, row: Row) -> None:
    ids = PROMPT * 3
    with opened(folder) as engine:
        (wanted,) = engine.generate([ask(None, ids)])
        engine.forget_prefixes()
        engine.generate([ask(row.tight, ids)])
        (after,) = engine.generate([ask(None, ids)])
        assert after.token_ids == wanted.token_ids
        (again,) = engine.generate([ask(row.tight, ids)])
        if row.name == "full":
            assert after.usage.cached_tokens == again.usage.cached_tokens > 0
        else:
            assert after.usage.cached_tokens == again.usage.cached_tokens == 0


def test_a_policy_that_breaks_fails_its_request_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(folder) as engine:
        (wanted,) = engine.generate([ask(StreamingLLM(sinks=2, recent=9))])
        for after in (3, len(PROMPT) + 2):
            broken, fine = engine.generate(
                [ask(Broken(after=after)), ask(StreamingLLM(sinks=2, recent=9))]
            )
            assert broken.finish_reason is FinishReason.FAILED
            assert "this policy is broken" in broken.notes["error"]["message"]
            assert fine.token_ids == wanted.token_ids
        with pytest.raises(ZeroDivisionError):
            engine.export_cache(ask(Broken()))
    assert "a request failed by a defect" in caplog.text


def test_twenty_at_once_end_as_each_does_alone(folder: Path) -> None:
    draw = random.Random(3)
    policies = [None, *(row.tight for row in ROWS)]
    requests = [
        ask(policies[n % len(policies)], draw.sample(range(5, 300), draw.randint(2, 40)), 12 + n)
        for n in range(20)
    ]
    with opened(folder) as engine:
        wanted = [engine.generate([request])[0].token_ids for request in requests]
        found: dict[int, tuple[int, ...]] = {}

        def work(at: int) -> None:
            found[at] = engine.generate([requests[at]])[0].token_ids

        threads = [threading.Thread(target=work, args=(at,)) for at in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [found[at] for at in range(20)] == wanted


def test_an_abort_gives_the_memory_back(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, endless=True, context=20_000)
    with opened(folder) as engine:
        outputs: list[Output] = []
        endless = ask(StreamingLLM(), PROMPT, 15_000, id="endless")
        worker = threading.Thread(target=lambda: outputs.extend(engine.generate([endless])))
        worker.start()
        while not engine._core().blocks.reserved:
            pass
        assert engine.abort("endless")
        worker.join(60)
        assert [output.finish_reason for output in outputs] == [FinishReason.ABORTED]


def test_a_step_that_fails_and_a_deadline_give_the_memory_back(folder: Path) -> None:
    policy = StreamingLLM(sinks=2, recent=6)
    with opened(folder) as engine:
        (wanted,) = engine.generate([ask(policy)])
        runner = engine._core().runner
        step = runner.step

        def broken(picked: Any, copies: Any = ()) -> Any:
            step(picked, copies)
            raise InferenceError("out of memory")

        runner.step = broken  # type: ignore[method-assign]
        with pytest.raises(InferenceError, match="out of memory"):
            engine.generate([ask(policy), ask(None)])
        runner.step = step  # type: ignore[method-assign]
        assert engine._core().blocks.reserved == 0
        (late,) = engine.generate([ask(policy, PROMPT, 200, seconds=1e-9)])
        assert late.finish_reason is FinishReason.DEADLINE
        assert engine._core().blocks.reserved == 0
        assert engine.generate([ask(policy)])[0].token_ids == wanted.token_ids


def test_memory_that_is_not_there_is_refused_and_others_go_on(folder: Path) -> None:
    with opened(folder, kv_cache_bytes=1) as engine:  # one context of 256 tokens
        (fine,) = engine.generate([ask(StreamingLLM())])
        assert fine.finish_reason is FinishReason.LENGTH
        with pytest.raises(InferenceInputError, match=r"needs \d+ bytes .* raise kv_cache_bytes"):
            engine.generate([ask(Claimant())])
        requests = [ask(StreamingLLM(recent=100), [n, *PROMPT]) for n in range(10, 16)]
        assert len(engine.generate(requests)) == 6  # one after the other


class Claimant(KVPolicy):
    """Claims more than there is."""

    def most(self, prompt: int, completion: int) -> int:
        return 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": "streaming_llm"}, r"kv='streaming_llm'; give what inference.kv.parse makes"),
        ({"past": b"x"}, r"past=b'x'; give what Snapshot.from_bytes makes"),
    ],
)
def test_what_is_no_policy_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with opened(folder) as engine, pytest.raises(InferenceInputError, match=message):
        engine.generate([Request(token_ids=PROMPT, **options)])


def test_scores_are_those_of_the_model_itself(folder: Path) -> None:
    with opened(folder) as engine:
        for options in ({"kv": StreamingLLM()}, {"skip_layers": (0, 1)}):
            with pytest.raises(InferenceInputError, match="a score is not defined"):
                engine.score(Request(token_ids=PROMPT, **options), [[7]])
        assert engine.score(Request(token_ids=PROMPT, kv=Full()), [[7]])


POLICIES = st.one_of(
    st.builds(Random, budget=st.integers(2, 30), recent=st.integers(1, 40)),
    st.builds(StreamingLLM, sinks=st.integers(0, 6), recent=st.integers(1, 30)),
    st.sampled_from([row.tight for row in ROWS[3:]]),
)


@given(POLICIES, st.integers(1, 60), st.integers(1, 20), st.sampled_from([1, 5, 64]))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_head_ever_holds_more_than_most(
    bounded: dict[int, NativeEngine], policy: KVPolicy, prompt: int, produced: int, budget: int
) -> None:
    most = 0
    append = Head.append

    def counting(head: Head, *entries: torch.Tensor) -> None:
        nonlocal most
        append(head, *entries)
        most = max(most, head.count)

    ids = [5 + n for n in range(prompt)]
    with patch.object(Head, "append", counting), watched(bounded[budget]) as looks:
        bounded[budget].generate([ask(policy, ids, produced)])
    assert most <= policy.most(prompt, produced)
    assert looks[-1].read == prompt + produced - 1


@pytest.fixture(scope="module")
def bounded(folder: Path) -> Iterator[dict[int, NativeEngine]]:
    """Engines by their step budget."""
    engines = {
        budget: NativeEngine.from_config(
            NativeConfig(model=str(folder), dtype="float32", device="cpu", step_tokens=budget)
        )
        for budget in (1, 5, 64)
    }
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.mark.default_model
def test_the_default_model_under_a_policy(default_engine: NativeEngine) -> None:
    text = "The river runs north. " * 12 + "The river"
    params = SamplingParams(max_tokens=12)
    policies = [None, StreamingLLM(sinks=4, recent=200), StreamingLLM(sinks=4, recent=28)]
    whole, roomy, tight = default_engine.generate(
        [Request(prompt=text, sampling=params, kv=policy) for policy in policies]
    )
    assert roomy.token_ids == whole.token_ids
    assert tight.notes["kv"]["entries"] == 32
    assert tight.stats.peak_kv_bytes < whole.stats.peak_kv_bytes * 0.75
    assert "runs north" in tight.text
