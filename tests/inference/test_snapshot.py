"""Caches as bytes: what is computed here goes on there, and what does not fit is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from inference import InferenceError, InferenceInputError, Request, SamplingParams
from inference.adapters.lora import Adapter
from inference.adapters.shape import Shape
from inference.engine import NativeConfig, Role
from inference.errors import Unsupported
from inference.kv import Full, KVPolicy, StreamingLLM
from inference.native.blocks import BLOCK
from inference.native.engine import NativeEngine
from inference.native.sequence import Sequence as Row
from inference.native.snapshot import Snapshot
from tests.house.source import ROOT
from tests.inference.conftest import open_engine
from tests.inference.policies import ROWS
from tests.inference.tiny import checkpoint

PROMPT = [5 + (7 * n * n) % 300 for n in range(60)]
Open = Callable[..., NativeEngine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"), seed=4, endless=True)


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[tuple[NativeEngine, NativeEngine]]:
    """Two engines of one model."""
    with closing(open_engine(folder)) as first, closing(open_engine(folder)) as second:
        yield first, second
        for engine in (first, second):
            blocks = engine._core().blocks
            assert (blocks.used, blocks.reserved) == (0, 0)


def ask(ids: list[int], kv: KVPolicy | None = None, produced: int = 12, **more: Any) -> Request:
    return Request(token_ids=ids, kv=kv, sampling=SamplingParams(max_tokens=produced), **more)


def answer(engine: NativeEngine, request: Request) -> list[int]:
    return list(engine.generate([request])[0].token_ids)


def test_whole_entries_go_to_another_engine(pair: tuple[NativeEngine, NativeEngine]) -> None:
    first, second = pair
    second.forget_prefixes()
    wanted = answer(first, ask(PROMPT))
    data = first.export_cache(ask(PROMPT))
    assert second.import_cache(data) == len(PROMPT) // BLOCK * BLOCK
    (output,) = second.generate([ask(PROMPT)])
    assert list(output.token_ids) == wanted
    assert output.usage.cached_tokens == len(PROMPT) // BLOCK * BLOCK
    (other,) = second.generate([ask(PROMPT, tenant="somebody else")])
    assert (list(other.token_ids), other.usage.cached_tokens) == (wanted, 0)
    longer = answer(first, ask([*PROMPT, *wanted, 9]))
    assert answer(second, ask([*PROMPT, *wanted, 9])) == longer


@given(
    st.sampled_from([row.tight for row in ROWS]),
    st.integers(2, len(PROMPT)),
    st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_a_cache_goes_on_as_if_nothing_had_happened(
    pair: tuple[NativeEngine, NativeEngine], policy: KVPolicy, length: int, cut: int
) -> None:
    """Read in one engine, answered in the other, and cut once more inside the answer."""
    first, second = pair
    ids = PROMPT[:length]
    whole = answer(first, ask(ids, policy))
    past = Snapshot.from_bytes(first.export_cache(ask(ids, policy)))
    (output,) = second.generate([ask([*ids, whole[0]], policy, 11, past=past)])
    assert list(output.token_ids) == whole[1:]
    assert output.usage.cached_tokens == length
    # Token by token, as the answer had them, exported after each.
    for at in range(cut):
        past = Snapshot.from_bytes(
            second.export_cache(ask([*ids, *whole[: at + 1]], policy, past=past))
        )
    rest = answer(first, ask([*ids, *whole[: cut + 1]], policy, 11 - cut, past=past))
    assert rest == whole[cut + 1 :]


@given(st.sampled_from([row.tight for row in ROWS]), st.integers(1, 11))
@settings(max_examples=15, deadline=None)
def test_a_prompt_cut_where_a_decision_is_due_goes_on_alike(
    pair: tuple[NativeEngine, NativeEngine], policy: KVPolicy, pieces: int
) -> None:
    first, second = pair
    cut = pieces * (policy.chunk or 7)
    if (policy.chunk is None and type(policy) is not Full) or cut >= len(PROMPT):
        return
    wanted = answer(first, ask(PROMPT, policy))
    past = Snapshot.from_bytes(first.export_cache(ask(PROMPT[:cut], policy)))
    assert answer(second, ask(PROMPT, policy, past=past)) == wanted


@given(st.integers(1, len(PROMPT) - 2))
@settings(max_examples=15, deadline=None)
def test_a_whole_past_may_be_cut_anywhere(
    pair: tuple[NativeEngine, NativeEngine], cut: int
) -> None:
    first, second = pair
    wanted = answer(first, ask(PROMPT))
    past = Snapshot.from_bytes(first.export_cache(ask(PROMPT[:cut])))
    for kv in (None, Full()):
        (output,) = second.generate([ask(PROMPT, kv, past=past)])
        assert (list(output.token_ids), output.usage.cached_tokens) == (wanted, cut)
    more = Snapshot.from_bytes(second.export_cache(ask(PROMPT[:-1], past=past)))
    assert not more.shrunken
    assert answer(first, ask(PROMPT, past=more)) == wanted
    assert second.import_cache(more.to_bytes()) == (len(PROMPT) - 1) // BLOCK * BLOCK


def test_other_numbers_other_weights_and_other_adapters_are_refused(
    folder: Path, tmp_path: Path, pair: tuple[NativeEngine, NativeEngine]
) -> None:
    policy = StreamingLLM(sinks=2, recent=6)
    whole = pair[0].export_cache(ask(PROMPT))
    past = Snapshot.from_bytes(pair[0].export_cache(ask(PROMPT, policy)))
    twin = checkpoint(tmp_path / "twin", seed=5, endless=True)
    halved = NativeEngine.from_config(
        NativeConfig(model=str(folder), dtype="bfloat16", device="cpu")
    )
    with closing(halved), closing(open_engine(twin)) as other:
        for engine in (halved, other):
            with pytest.raises(InferenceInputError, match=r"another dtype|torch.float32 \["):
                engine.import_cache(whole)
            with pytest.raises(InferenceInputError, match=r"another dtype|torch.float32 \["):
                engine.generate([ask([*PROMPT, 9], policy, past=past)])
            assert len(answer(engine, ask(PROMPT))) == 12
    adapted = replace(Snapshot.from_bytes(whole), adapters=("digest",))
    with pytest.raises(InferenceInputError, match="with other adapters"):
        pair[0].import_cache(adapted.to_bytes())
    with pytest.raises(InferenceInputError, match="with other adapters"):
        pair[0].generate([ask([*PROMPT, 9], past=adapted)])


def test_entries_are_those_of_their_adapter(folder: Path) -> None:
    with closing(open_engine(folder)) as engine:
        shape = Shape.of_config(engine._model().config, torch.float32, torch.device("cpu"))
        out, width = shape.sizes["v_proj"]
        draw = torch.Generator().manual_seed(1)
        sides = torch.randn(2, width, generator=draw), torch.randn(out, 2, generator=draw)
        engine.attach("style", Adapter.from_tensors("style", {(0, "v_proj"): sides}, 1, shape))
        request = ask(PROMPT, adapters=("style",))
        wanted, plain = answer(engine, request), answer(engine, ask(PROMPT))
        assert wanted != plain
        data = engine.export_cache(request)
        engine.forget_prefixes()
        with pytest.raises(InferenceInputError, match="with other adapters"):
            engine.import_cache(data)
        assert engine.import_cache(data, adapters=("style",)) > 0
        (output,) = engine.generate([request])
        assert (list(output.token_ids), output.usage.cached_tokens > 0) == (wanted, True)
        assert engine.generate([ask(PROMPT)])[0].usage.cached_tokens == 0


def test_a_past_that_does_not_belong_is_refused(pair: tuple[NativeEngine, NativeEngine]) -> None:
    engine, policy = pair[0], StreamingLLM(sinks=2, recent=6)
    past = Snapshot.from_bytes(engine.export_cache(ask(PROMPT, policy)))
    whole = Snapshot.from_bytes(engine.export_cache(ask(PROMPT)))
    longer = [*PROMPT, 9]
    for request, says in (
        (ask(longer, past=past), "shrunk by streaming_llm:sinks=2,recent=6, and the request asks"),
        (ask(longer, StreamingLLM(sinks=2, recent=7), past=past), "recent=7"),
        (ask(longer, policy, past=whole), "shrunk by no policy"),
        (ask(PROMPT, policy, past=past), "at least one token must follow"),
        (ask([9, *PROMPT], policy, past=past), "not the beginning of the prompt"),
    ):
        with pytest.raises(InferenceInputError, match=says):
            engine.generate([request])
    with pytest.raises(InferenceInputError, match="give them to a request as its past"):
        engine.import_cache(past.to_bytes())
    with pytest.raises(InferenceInputError, match="gives a past, under which a score is not def"):
        engine.score(ask(longer, past=whole), [[7]])


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "cut short": lambda whole, at: whole[: at % len(whole)],
    "too long": lambda whole, at: whole + b"x" * (1 + at % 9),
    "shifted header": lambda whole, at: whole[:8] + b"[" * (1 + at % 5000) + whole[8:],
    "deep header": lambda whole, at: (5000).to_bytes(8, "little") + b"[" * 5000,
    "long header": lambda whole, at: b"\xff" * 8 + whole[8:],
    "another file": lambda whole, at: save({"token_ids": torch.tensor([at])}),
    "noise": lambda whole, at: at.to_bytes(12, "little"),
}


@given(st.sampled_from(sorted(DAMAGES)), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_refused(
    pair: tuple[NativeEngine, NativeEngine], damage: str, at: int
) -> None:
    damaged = DAMAGES[damage](pair[0].export_cache(ask(PROMPT[:20])), at)
    for use in (Snapshot.from_bytes, pair[0].import_cache):
        with pytest.raises(InferenceInputError, match="give what export_cache returned"):
            use(damaged)


def changed(name: str, value: torch.Tensor | None) -> Callable[[Snapshot], Snapshot]:
    def change(snapshot: Snapshot) -> Snapshot:
        tensors = {**snapshot.tensors, **({} if value is None else {name: value})}
        if value is None:
            del tensors[name]
        return replace(snapshot, tensors=tensors)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed("keys.1.0", None), "no tensor 'keys.1.0'"),
        (changed("keys.9.0", torch.zeros(1)), "a tensor 'keys.9.0'"),
        (changed("keys.0.0", torch.zeros(8, 3)), r"'keys.0.0' of torch.float32 \[8, 3\]"),
        (changed("keys.0.0", torch.tensor(1.0)), r"'keys.0.0' of torch.float32 \[\]"),
        (changed("values.0.1", torch.zeros(7, 16)), r"'values.0.1' of torch.float32 \[7, 16\]"),
        (changed("values.0.1", torch.full((8, 16), torch.nan)), "not finite"),
        (changed("positions.1.1", torch.arange(8) + 55), "positions beyond its 60 tokens"),
        (changed("positions.1.1", torch.zeros(8)), "'positions.1.1' of torch.float32"),
        (lambda one: replace(one, token_ids=(*one.token_ids[:-1], 400)), "vocabulary of 320"),
        (lambda one: replace(one, token_ids=one.token_ids * 5), "a context of 256"),
    ],
)
def test_entries_that_do_not_fit_harm_nobody(
    pair: tuple[NativeEngine, NativeEngine], change: Callable[[Snapshot], Snapshot], says: str
) -> None:
    engine, policy = pair[0], StreamingLLM(sinks=2, recent=6)
    past = change(Snapshot.from_bytes(engine.export_cache(ask(PROMPT, policy))))
    with pytest.raises(InferenceInputError, match=says):
        engine.generate([ask([*PROMPT, 9], policy, past=past)])
    assert len(answer(engine, ask(PROMPT, policy))) == 12


def test_more_entries_than_the_policy_allows_are_refused(
    pair: tuple[NativeEngine, NativeEngine],
) -> None:
    engine, policy = pair[0], StreamingLLM(sinks=2, recent=6)
    past = Snapshot.from_bytes(engine.export_cache(ask(PROMPT, policy)))
    for at in (0, 1):
        past.tensors.update(
            {
                f"keys.{at}.0": torch.zeros(40, 16),
                f"values.{at}.0": torch.zeros(40, 16),
                f"positions.{at}.0": torch.arange(40),
            }
        )
    with pytest.raises(InferenceInputError, match=r"holds 40 entries in a head, .* allows 14"):
        engine.generate([ask([*PROMPT, 9], policy, past=past)])


def test_an_import_beyond_the_memory_is_refused_or_cut(folder: Path) -> None:
    long = [*PROMPT] * 4
    with closing(open_engine(folder, kv_cache_bytes=1)) as engine:
        data = engine.export_cache(ask(long))
        engine.forget_prefixes()
        tensors = load(data)
        assert tensors["keys.0"].shape == (len(long), 2, 16)
    room = 3 * BLOCK * 2 * 2 * 2 * 16 * 4
    with closing(open_engine(folder, prefix_cache_bytes=room)) as engine:
        assert engine.import_cache(data) == 3 * BLOCK
        assert engine.generate([ask(long)])[0].usage.cached_tokens == 3 * BLOCK
    with closing(open_engine(folder, prefix_cache_bytes=0)) as engine:
        assert engine.import_cache(data) == 0


def test_an_import_waits_its_turn_and_leaves_nothing_behind(folder: Path) -> None:
    with closing(open_engine(folder)) as engine:
        data = engine.export_cache(ask(PROMPT))
        wanted = answer(engine, ask([9, *PROMPT], produced=150))
        engine.forget_prefixes()
        found: list[list[int]] = []
        worker = Thread(target=lambda: found.append(answer(engine, ask([9, *PROMPT], None, 150))))
        worker.start()
        imported = [engine.import_cache(data) for _ in range(5)]
        worker.join(60)
        assert found == [wanted] and set(imported) == {48}
        blocks = engine._core().blocks
        everything = Row([1], reserve=blocks.free)
        assert blocks.set_apart(everything)
        with pytest.raises(InferenceError, match="no room for 60 tokens"):
            engine.import_cache(data)
        blocks.release(everything)
        assert engine.import_cache(data) == 48


PREFILL = """
import sys
from pathlib import Path
from inference import Request
from inference.engine import NativeConfig
from inference.kv import parse
folder, spec, out = sys.argv[1:4]
config = NativeConfig(model=folder, dtype="float32", device="cpu", threads=1, role="prompt")
engine = config.open()
request = Request(token_ids=[int(one) for one in sys.argv[4:]], kv=parse(spec))
Path(out).write_bytes(engine.export_cache(request))
engine.close()
"""


@pytest.mark.parametrize("spec", ["full", "streaming_llm:sinks=2,recent=6"])
def test_one_process_reads_and_another_answers(folder: Path, tmp_path: Path, spec: str) -> None:
    from inference.kv import parse

    out = tmp_path / "kv.safetensors"
    line = [sys.executable, "-c", PREFILL, str(folder), spec, str(out), *map(str, PROMPT)]
    subprocess.run(line, check=True, cwd=ROOT, timeout=120)
    policy = parse(spec)
    with closing(open_engine(folder)) as alone:
        wanted = answer(alone, ask(PROMPT, policy))
    with closing(open_engine(folder, role="token")) as engine:
        with pytest.raises(Unsupported, match="0 of its 60 prompt tokens"):
            engine.generate([ask(PROMPT)])
        if type(policy) is Full:
            assert engine.import_cache(out.read_bytes()) == 48
            assert answer(engine, ask(PROMPT)) == wanted
        else:
            past = Snapshot.from_bytes(out.read_bytes())
            request = ask([*PROMPT, wanted[0]], policy, 11, past=past)
            assert answer(engine, request) == wanted[1:]


def test_a_prompt_engine_answers_nothing(folder: Path) -> None:
    role: Role = "prompt"
    with closing(open_engine(folder, role=role)) as engine:
        for act in (
            lambda: engine.generate([ask(PROMPT)]),
            lambda: engine.score(ask(PROMPT), [[7]]),
        ):
            with pytest.raises(Unsupported, match="role 'prompt'"):
                act()
        assert engine.export_cache(ask(PROMPT))
    with pytest.raises(ValueError, match="role"):
        NativeConfig.model_validate({"role": "decoder"})
