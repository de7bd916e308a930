"""Layers left out for the answer's tokens: the same as transformers' modules without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch

from inference import InferenceInputError, Request, SamplingParams
from inference.engine import NativeConfig
from inference.kv import KVPolicy, StreamingLLM
from inference.native.engine import NativeEngine
from inference.taps import Choice, Taps
from tests.inference.conftest import open_engine
from tests.inference.dense import Dense, Entry
from tests.inference.tiny import checkpoint, network

PROMPT = [5 + (7 * n * n) % 300 for n in range(23)]
LAYERS = 2
RANGES = [(0, 1), (1, 2), (0, 2)]


@pytest.fixture(
    scope="module",
    params=[("llama", {}), ("qwen2", {}), ("mistral", {"sliding_window": 9}), ("qwen3", {})],
    ids=lambda family: family[0],
)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NativeEngine]:
    kind, options = request.param
    folder = checkpoint(tmp_path_factory.mktemp(kind), kind, seed=2, endless=True, **options)
    with closing(open_engine(folder)) as one:
        yield one
        assert one._core().blocks.reserved == 0


def ask(skip: Any, kv: KVPolicy | None = None, **more: Any) -> Request:
    params = SamplingParams(max_tokens=8)
    return Request(token_ids=PROMPT, sampling=params, skip_layers=skip, kv=kv, **more)


def last_six(layer: int, head: int, held: list[Entry], read: int) -> list[Entry]:
    return held if len(held) <= 6 else [held[0], *held[-5:]]


@pytest.mark.parametrize("skip", RANGES)
@pytest.mark.parametrize("kv", [None, StreamingLLM(sinks=1, recent=5)])
def test_the_answer_is_that_of_the_modules_left(
    engine: NativeEngine, skip: tuple[int, int], kv: KVPolicy | None
) -> None:
    logits: list[torch.Tensor] = []

    def see(one: Any) -> None:
        if isinstance(one, Choice):
            logits.append(one.raw)

    (output,) = engine.generate([ask(skip, kv, taps=Taps(see, logits=True))])
    dense = Dense(network(engine.model), skip=range(*skip))
    if kv is not None:
        dense.rule, dense.chunk, dense.reindex = last_six, kv.chunk, kv.reindex
    assert list(output.token_ids) == dense.generate(PROMPT, 8)
    torch.testing.assert_close(torch.stack(logits), torch.stack(dense.logits), atol=2e-4, rtol=2e-4)
    assert output.notes["skipped_layers"] == list(skip)


def test_rows_with_and_without_share_a_step(engine: NativeEngine) -> None:
    requests = [ask(skip) for skip in (None, *RANGES)] * 2
    alone = [engine.generate([request])[0].token_ids for request in requests[:4]]
    assert len(set(alone)) == 4
    together = engine.generate([Request(**_fields(request)) for request in requests])
    assert [output.token_ids for output in together] == alone * 2


def _fields(request: Request) -> dict[str, Any]:
    names = ("token_ids", "sampling", "skip_layers")
    return {name: getattr(request, name) for name in names}


@pytest.mark.parametrize(
    "skip", [(0, 0), (1, 0), (-1, 1), (0, 3), (2, 3), (0,), (0, 1, 2), ("0", 1), (0.0, 1), 1, True]
)
def test_ranges_that_name_no_layers_are_refused(engine: NativeEngine, skip: Any) -> None:
    with pytest.raises(InferenceInputError, match="within the model's layers 0 to 1"):
        engine.generate([ask(skip)])


def test_a_forward_pass_of_transformers_skips_nothing(engine: NativeEngine) -> None:
    config = NativeConfig(model=engine.model, dtype="float32", device="cpu", forward="transformers")
    with closing(NativeEngine.from_config(config)) as plain:
        with pytest.raises(InferenceInputError, match="asks for skipped layers, which model"):
            plain.generate([ask((0, 1))])
        with pytest.raises(InferenceInputError, match="asks for a KV policy, which model"):
            plain.generate([ask(None, StreamingLLM())])
        data = plain.export_cache(Request(token_ids=PROMPT))
        assert engine.import_cache(data) == 16  # whole entries are those of either pass
