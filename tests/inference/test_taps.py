"""Taps show what transformers computes, whatever else runs, and cost nothing when off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference import FinishReason, InferenceInputError, Request
from inference.errors import Unsupported
from inference.kv import StreamingLLM
from inference.native.engine import NativeEngine
from inference.native.prompts import encode
from inference.native.runner import Runner
from inference.native.step import Step
from inference.requests import SamplingParams
from inference.taps import Choice, Tapped, Taps
from tests.inference.test_batching import VARIANTS, opened, requests_for, tokens
from tests.inference.tiny import checkpoint

LAYERS, HEADS, KV_HEADS = 2, 4, 2
Tiny = Callable[..., NativeEngine]


class Truth:
    """What transformers alone computes over one row of tokens, with eager attention."""

    def __init__(self, folder: Path, ids: list[int]) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.heads: dict[tuple[str, int], torch.Tensor] = {}
        with ExitStack() as stack, torch.no_grad():
            for at, layer in enumerate(model.model.layers):
                for name, count in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                    module = getattr(layer.self_attn, f"{name}_norm", None) or getattr(
                        layer.self_attn, f"{name}_proj"
                    )
                    hook = module.register_forward_hook(self._keep((name, at), count, len(ids)))
                    stack.callback(hook.remove)
            out = model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        self.hidden = [one[0] for one in out.hidden_states]
        self.attention = [one[0] for one in out.attentions]
        self.logits = out.logits[0]

    def _keep(self, key: tuple[str, int], count: int, rows: int) -> Callable[..., None]:
        def keep(_: Any, __: Any, output: torch.Tensor) -> None:
            self.heads[key] = output.reshape(rows, count, -1)

        return keep


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def compare(seen: list[Tapped | Choice], truth: Truth, count: int) -> None:
    """Every one of `count` positions was shown, and as it is."""
    shown: set[int] = set()
    for tapped in (one for one in seen if isinstance(one, Tapped)):
        shown.update(tapped.positions)
        at = list(tapped.positions)
        assert set(tapped.hidden) == {0, 1, LAYERS}
        for layer, states in tapped.hidden.items():
            close(states, truth.hidden[layer][at])
        for name, held in (("q", tapped.queries), ("k", tapped.keys), ("v", tapped.values)):
            assert set(held) == {0, 1}
            for layer, heads in held.items():
                close(heads, truth.heads[name, layer][at])
        assert set(tapped.attention) == {0, 1}
        for layer, weights in tapped.attention.items():
            entries = at[-1] + 1
            assert weights.shape == (HEADS, len(at), entries)
            close(weights, truth.attention[layer][:, at, :entries])
    assert shown == set(range(count))


@pytest.mark.parametrize("budget", [1, 7, 10**6])
@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_taps_show_what_transformers_computes(
    tmp_path: Path, kind: str, options: dict[str, Any], budget: int
) -> None:
    folder = checkpoint(tmp_path, kind, seed=4, endless=True, **options)
    requests = requests_for(6, count=9, max_tokens=6)
    with opened(folder, step_tokens=budget) as engine:
        wanted = tokens(engine.generate(requests))  # fills the prefix cache as well
        logs: dict[str, list[Tapped | Choice]] = {r.id: [] for r in requests[::3]}
        mixed = [
            replace(r, taps=Taps(logs[r.id].append, (0, 1, -1), (0, 1), (0, -1), True))
            if r.id in logs
            else r
            for r in requests
        ]
        assert tokens(engine.generate(mixed)) == wanted
        for request in requests[::3]:
            ids = [*encode(engine._model(), request), *wanted[request.id]]
            truth = Truth(folder, ids[:-1])
            compare(logs[request.id], truth, len(ids) - 1)
            choices = [one for one in logs[request.id] if isinstance(one, Choice)]
            assert [one.token for one in choices] == list(wanted[request.id])
            for one in choices:
                assert one.token == ids[one.position]
                close(one.raw, truth.logits[one.position - 1])
                assert torch.equal(one.processed, one.raw)  # greedy changes nothing


def test_logits_before_and_after_the_processors(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, endless=True)
    params = SamplingParams(
        max_tokens=12,
        temperature=1.7,
        top_k=40,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.3,
        seed=3,
    )
    seen: list[Choice] = []
    request = Request(prompt="The fox", sampling=params, taps=Taps(seen.append, logits=True))  # type: ignore[arg-type]
    with opened(folder) as engine:
        prompt = encode(engine._model(), request)
        produced = engine.generate([request])[0].token_ids
    ids = [*prompt, *produced]
    steps = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(1.7),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
        ]
    )
    choices = [one for one in seen if isinstance(one, Choice)]
    assert len(choices) == 12
    for one in choices:
        theirs = steps(torch.tensor([ids[: one.position]]), one.raw[None].clone())[0]
        assert torch.equal(theirs.isinf(), one.processed.isinf())
        # A constant shift of all logits is no difference.
        close(one.processed.softmax(0), theirs.softmax(0))
        assert one.processed[one.token] > -torch.inf


def test_nothing_is_recorded_when_nobody_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Step] = []
    compose = Runner._compose

    def kept(self: Runner, picked: Any) -> Any:
        step, counts = compose(self, picked)
        steps.append(step)
        return step, counts

    monkeypatch.setattr(Runner, "_compose", kept)
    request = Request(prompt="fox", sampling=SamplingParams(max_tokens=3))
    with opened(checkpoint(tmp_path)) as engine:
        engine.generate([request])
        assert steps and all(step.recorder is None for step in steps)
        steps.clear()
        engine.generate([replace(request, taps=Taps(lambda _: None))])
        assert all(step.recorder is not None for step in steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (3,)}, "tap hidden names layer 3; this model has -3 to 2"),
        ({"heads": (2,)}, "tap heads names layer 2; this model has -2 to 1"),
        ({"attention": (0, -3)}, "tap attention names layer -3"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    tiny: Tiny, options: dict[str, Any], message: str
) -> None:
    request = Request(prompt="fox", taps=Taps(lambda _: None, **options))
    with pytest.raises(InferenceInputError, match=message):
        tiny().generate([request])


def test_what_taps_cannot_show_is_refused(tiny: Tiny) -> None:
    watch = Taps(lambda _: None, attention=(0,))
    engine = tiny()
    for options in ({"kv": StreamingLLM()}, {"skip_layers": (0, 1)}):
        with pytest.raises(InferenceInputError, match="taps attention weights with"):
            engine.generate([Request(prompt="fox", taps=watch, **options)])  # type: ignore[arg-type]
    with pytest.raises(InferenceInputError, match="taps, under which a score"):
        engine.score(Request(prompt="fox", taps=watch), ["a"])


def test_a_model_without_the_lean_forward_has_no_taps(tmp_path: Path) -> None:
    with opened(checkpoint(tmp_path), forward="transformers") as engine:
        with pytest.raises(Unsupported, match=r"taps, which model .* 'llama' cannot do"):
            engine.generate([Request(prompt="fox", taps=Taps(lambda _: None))])
        assert not {"hidden_states", "attention_weights"} & engine.capabilities


@pytest.mark.parametrize("logits", [True, False])
def test_a_sink_that_raises_fails_its_request_only(tiny: Tiny, logits: bool) -> None:
    def broken(seen: Tapped | Choice) -> None:
        if isinstance(seen, Choice) is logits:
            raise ZeroDivisionError("by hand")

    engine = tiny(endless=True)
    good = requests_for(2, count=4)
    wanted = tokens(engine.generate(good))
    bad = Request(prompt="fox", id="bad", taps=Taps(broken, logits=logits))
    failed, *others = engine.generate([bad, *good])
    assert failed.finish_reason is FinishReason.FAILED
    assert failed.notes["error"]["code"] == "tap_failed"
    assert "request 'bad' raised ZeroDivisionError: by hand" in failed.notes["error"]["message"]
    assert tokens(others) == wanted
    assert engine._core().blocks.used == 0


def test_a_prompt_that_is_watched_is_read_anew(tiny: Tiny) -> None:
    engine = tiny(endless=True)
    request = Request(token_ids=[7] * 40, sampling=SamplingParams(max_tokens=1))
    engine.generate([request])
    assert engine.generate([request])[0].usage.cached_tokens > 0
    seen: list[Tapped | Choice] = []
    output = engine.generate([replace(request, taps=Taps(seen.append, hidden=(-1,)))])[0]
    assert output.usage.cached_tokens == 0
    (tapped,) = seen
    assert isinstance(tapped, Tapped) and tapped.positions == tuple(range(40))
    assert set(tapped.hidden) == {LAYERS} and not tapped.queries and not tapped.attention
