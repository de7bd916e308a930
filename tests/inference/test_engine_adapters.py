"""Adapters in the engine: each row carries its own, and nothing of them stays behind."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from inference import FinishReason, Grammar, Request
from inference.adapters.lora import Adapter
from inference.errors import AdapterInputError, AdapterInUse, UnknownName, Unsupported
from inference.guidance import Context, ContextAware
from inference.native.engine import NativeEngine
from inference.native.prompts import encode
from inference.requests import Output, SamplingParams
from inference.taps import Choice, Taps
from tests.inference.test_batching import VARIANTS, opened, requests_for, tokens
from tests.inference.tiny import checkpoint, network

Tiny = Callable[..., NativeEngine]
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]},
    "mlp": {"r": 2, "lora_alpha": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "all": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "use_rslora": True},
}


def save(model: Path, out: Path, seed: int, **options: Any) -> Path:
    """A PEFT folder with random factors."""
    torch.manual_seed(seed)
    network_ = copy.deepcopy(network(str(model)))
    wrapped = get_peft_model(network_, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(out)
    return out


def merged(model: Path, adapter: Path) -> Any:
    """The network with the adapter's change written into its weights, by peft."""
    return PeftModel.from_pretrained(copy.deepcopy(network(str(model))), adapter).merge_and_unload()


def alone(model: Any, prompt: list[int], count: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    return tuple(found[0, len(prompt) :].tolist())


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_rows_equal_models_with_the_adapter_merged(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path / "model", kind, seed=4, **options)
    folders = {
        name: save(folder, tmp_path / name, seed, **given)
        for seed, (name, given) in enumerate(OPTIONS.items())
    }
    models: dict[str, Any] = {"": network(str(folder))}
    models |= {name: merged(folder, path) for name, path in folders.items()}
    names = list(models)
    requests = [
        replace(request, adapters=(names[n % 4],) if names[n % 4] else ())
        for n, request in enumerate(requests_for(2, count=20))
    ]
    with opened(folder) as engine:
        wanted = {
            request.id: alone(
                models[names[n % 4]],
                encode(engine._model(), request),
                request.sampling.max_tokens,
            )
            for n, request in enumerate(requests)
        }
        for name, path in folders.items():
            engine.attach(name, path)
        assert tokens(engine.generate(requests)) == wanted
        assert tokens(engine.generate(requests)) == wanted  # each from its own prefixes
    for budget in (1, 7):
        with opened(folder, step_tokens=budget) as engine:
            for name, path in folders.items():
                engine.attach(name, path)
            assert tokens(engine.generate(requests)) == wanted


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"), endless=True)


@pytest.fixture(scope="module")
def folders(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("adapters")
    return {name: save(model, out / name, 7, **given) for name, given in OPTIONS.items()}


def logits(engine: NativeEngine, **options: Any) -> torch.Tensor:
    """Logits of the first token, as the model computes them."""
    seen: list[Any] = []
    request = Request(
        token_ids=list(range(5, 45)),
        sampling=SamplingParams(max_tokens=1),
        taps=Taps(seen.append, logits=True),
        **options,
    )
    engine.generate([request])
    (choice,) = [one for one in seen if isinstance(one, Choice)]
    return choice.raw


def test_attach_and_detach_restores_every_bit(model: Path, folders: dict[str, Path]) -> None:
    with opened(model) as engine:
        before = logits(engine)
        engine.attach("all", folders["all"])
        changed = logits(engine, adapters=("all",))
        assert not torch.equal(changed, before)
        assert torch.equal(logits(engine), before)  # while it is attached, without it
        with torch.no_grad():
            theirs = merged(model, folders["all"])(torch.arange(5, 45)[None]).logits[0, -1]
        torch.testing.assert_close(changed, theirs, rtol=1e-3, atol=1e-3)
        engine.detach("all")
        assert torch.equal(logits(engine), before)
        with pytest.raises(UnknownName, match="no adapter is attached as 'all'; there are none"):
            logits(engine, adapters=("all",))


def test_prefixes_are_never_shared_across_adapters(model: Path, folders: dict[str, Path]) -> None:
    ids = [5 + n for n in range(40)]
    with opened(model) as engine:
        for name in ("all", "mlp"):
            engine.attach(name, folders[name])
        engine.attach("twin", folders["all"])
        cached = []
        for adapters in ((), ("all",), ("mlp",), ("all", "mlp"), (), ("twin",), ("mlp", "all")):
            request = Request(
                token_ids=ids, adapters=adapters, sampling=SamplingParams(max_tokens=1)
            )
            cached.append(engine.generate([request])[0].usage.cached_tokens)
        # What is cached is known by what an adapter does, not by its name or place.
        assert cached == [0, 0, 0, 0, 32, 32, 32]


def test_scores_with_adapters_and_with_them_off(model: Path, folders: dict[str, Path]) -> None:
    request = Request(token_ids=[5 + n for n in range(20)])
    continuations = [[7, 8, 9], [7, 10]]

    def truth(network_: Any) -> list[list[float]]:
        found = []
        for tail in continuations:
            with torch.no_grad():
                out = network_(torch.tensor([[*range(5, 25), *tail]])).logits[0]
            rows = out.log_softmax(-1)[19 : 19 + len(tail)]
            found.append([float(row[token]) for row, token in zip(rows, tail, strict=True)])
        return found

    with opened(model) as engine:
        engine.attach("all", folders["all"])
        pairs = (
            (request, network(str(model))),
            (replace(request, adapters=("all",)), merged(model, folders["all"])),
            (request, network(str(model))),
        )
        for asked, network_ in pairs:
            for score, wanted in zip(
                engine.score(asked, continuations), truth(network_), strict=True
            ):
                assert score.logprobs == pytest.approx(wanted, abs=2e-3)


def test_what_is_in_use_stays(model: Path, folders: dict[str, Path]) -> None:
    with opened(model) as engine:
        engine.attach("all", folders["all"])
        request = Request(
            prompt="fox", id="r", adapters=("all",), sampling=SamplingParams(max_tokens=200)
        )
        outputs: list[Output] = []
        worker = threading.Thread(target=lambda: outputs.extend(engine.generate([request])))
        worker.start()
        while "r" not in engine._admission().running or not engine._core().scheduler.running:
            pass
        with pytest.raises(AdapterInUse, match="adapter 'all' is used by request 'r'"):
            engine.detach("all")
        engine.abort("r")
        worker.join(60)
        assert outputs[0].finish_reason is FinishReason.ABORTED
        engine.detach("all")


def other(engine: NativeEngine, **changes: Any) -> Adapter:
    """An adapter for a model that is like the engine's but for `changes`."""
    shape = engine.adapters.shape
    factors = torch.ones(2, 64), torch.ones(64, 2)
    return Adapter.from_tensors("x", {(0, "o_proj"): factors}, 1.0, replace(shape, **changes))


def test_refusals_leave_the_engine_at_work(
    model: Path, folders: dict[str, Path], tmp_path: Path, tiny: Tiny
) -> None:
    wide = checkpoint(tmp_path / "wide", "qwen3", head_dim=32)
    foreign = save(wide, tmp_path / "foreign", 1, **OPTIONS["attention"])
    with opened(model) as engine:
        engine.attach("attention", folders["attention"])
        request = Request(prompt="fox", id="r", sampling=SamplingParams(max_tokens=3))
        wanted = engine.generate([request])[0].token_ids
        cases: list[tuple[Callable[[], object], type[Exception], str]] = [
            (
                lambda: engine.generate([replace(request, adapters=("atention",))]),
                UnknownName,
                "did you mean 'attention'",
            ),
            (
                lambda: engine.score(replace(request, adapters=("b",)), ["x"]),
                UnknownName,
                "known: attention",
            ),
            (lambda: engine.detach("atention"), UnknownName, "did you mean"),
            (lambda: engine.attach("attention", folders["mlp"]), AdapterInputError, "another"),
            (lambda: engine.attach("f", foreign), AdapterInputError, "layer 0, q_proj.*shape"),
            (lambda: engine.attach("f", tmp_path / "none"), AdapterInputError, "none"),
            (
                lambda: engine.attach("f", other(engine, layers=3)),
                AdapterInputError,
                "made for another model",
            ),
            (
                lambda: engine.generate([replace(request, adapters=("attention",) * 2)]),
                AdapterInputError,
                "more than once",
            ),
            (lambda: replace(request, adapters="attention"), AdapterInputError, "give a tuple"),
            (lambda: Context("a", adapters=("x", "x")), AdapterInputError, "a guiding context"),
        ]
        for act, error, message in cases:
            with pytest.raises(error, match=message):
                act()
            assert engine.generate([request])[0].token_ids == wanted
    with opened(model, forward="transformers") as engine:
        with pytest.raises(Unsupported, match="takes no adapters"):
            engine.attach("all", folders["all"])
        with pytest.raises(Unsupported, match="asks for adapters"):
            engine.generate([replace(request, adapters=("all",))])
        assert "lora" not in engine.capabilities


def test_factors_of_different_ranks_are_refused(tiny: Tiny) -> None:
    engine = tiny()
    shape = engine.adapters.shape
    with pytest.raises(AdapterInputError, match=r"B has shape \[64, 3\].* needs \[64, 2\]"):
        Adapter.from_tensors(
            "x", {(0, "o_proj"): (torch.ones(2, 64), torch.ones(64, 3))}, 1.0, shape
        )


def crowd() -> list[Request]:
    """100 requests that mix everything that may differ from row to row."""
    requests = []
    for n, request in enumerate(requests_for(9, count=100, max_tokens=30)):
        options: dict[str, Any] = {"adapters": ((), ("all",), ("mlp",), ("all", "mlp"))[n % 4]}
        if n % 5 == 1:
            beside = ("attention",) if n % 2 else ()
            options["guidance"] = ContextAware(Context("fox " * (n % 7 + 1), adapters=beside))
        if n % 5 == 2:
            options["grammar"] = Grammar.regex("[a-z]{3,20}( [0-9]{1,5}){0,4}")
        if n % 5 == 3:
            options["sampling"] = SamplingParams(max_tokens=30, temperature=1.1, top_p=0.95, seed=n)
        if n % 3 == 0:
            options["logprobs"] = 2
        requests.append(replace(request, **options))
    return requests


@pytest.fixture
def mixed(model: Path, folders: dict[str, Path]) -> Iterator[NativeEngine]:
    with opened(model, step_tokens=48, kv_cache_bytes=2**19) as engine:
        for name, path in folders.items():
            engine.attach(name, path)
        yield engine


def test_a_crowd_of_which_a_third_is_aborted(mixed: NativeEngine) -> None:
    requests = crowd()
    wanted = {output.id: output for output in mixed.generate(requests)}
    doomed = random.Random(1).sample([request.id for request in requests], 30)
    outputs: list[Output] = []
    first = threading.Event()

    def abort() -> None:
        for request_id in doomed:
            mixed.abort(request_id)
            first.wait(0.005)

    worker = threading.Thread(
        target=lambda: outputs.extend(mixed.generate(requests, on_output=lambda _: first.set()))
    )
    worker.start()
    while not mixed.abort(doomed[0]):
        pass
    killer = threading.Thread(target=abort)
    killer.start()
    for thread in (worker, killer):
        thread.join(120)
    assert len(outputs) == 100
    aborted = {o.id for o in outputs if o.finish_reason is FinishReason.ABORTED}
    assert aborted and aborted <= set(doomed)
    for output in outputs:
        same = wanted[output.id]
        assert output.token_ids == same.token_ids[: len(output.token_ids)]
        if output.id not in aborted:
            assert (output.token_ids, output.finish_reason) == (same.token_ids, same.finish_reason)
            found = [entry.logprob for entry in output.logprobs]
            assert found == pytest.approx([entry.logprob for entry in same.logprobs], abs=2e-3)
    for name in ("all", "mlp", "attention"):
        mixed.detach(name)
