"""Adapters equal what PEFT computes, survive its folder format, and refuse what does not fit."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from inference import InferenceInputError
from inference.adapters.folder import READ
from inference.adapters.lora import Adapter
from inference.adapters.registry import Adapters
from inference.adapters.shape import Shape
from inference.errors import AdapterInputError, AdapterInUse, UnknownName
from tests.inference.hooked import carrying
from tests.inference.tiny import checkpoint, network

IDS = torch.arange(5, 25)[None]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def shape(folder: Path) -> Shape:
    return Shape.of(network(str(folder)))


def fresh(folder: Path) -> Any:
    """A network of its own, because PEFT changes the one it is given."""
    return copy.deepcopy(network(str(folder)))


def trained(folder: Path, out: Path, seed: int = 3, **options: Any) -> torch.Tensor:
    """Save a PEFT adapter with random factors to `out`; the logits that PEFT gives with it."""
    torch.manual_seed(seed)
    model = get_peft_model(fresh(folder), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(out)
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 2 on q_proj, as PEFT saves it."""
    out = tmp_path_factory.mktemp("plain")
    trained(folder, out, r=2, target_modules=["q_proj"])
    return out


def edit(folder: Path, **options: Any) -> None:
    """Change keys of adapter_config.json."""
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "use_rslora": True},
        {"r": 2, "target_modules": r"model\.layers\.\d+\.mlp\.(up|gate)_proj"},
        {"r": 2, "target_modules": ["o_proj", "k_proj"], "layers_to_transform": [1]},
        {
            "r": 2,
            "target_modules": ["v_proj"],
            "layers_to_transform": 0,
            "layers_pattern": "layers",
        },
        {"r": 2, "target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.1\..*"},
        {"r": 2, "target_modules": ["self_attn.q_proj", "model.layers.1.mlp.up_proj"]},
        {
            "r": 2,
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 5, "layers.1.self_attn.q_proj": 1},
            "alpha_pattern": {r"0\..*\.v_proj": 3},
            "init_lora_weights": "gaussian",
        },
    ],
)
def test_same_logits_as_peft_there_and_back(
    folder: Path, shape: Shape, tmp_path: Path, options: dict[str, Any]
) -> None:
    wanted = trained(folder, tmp_path / "theirs", **options)
    adapter = Adapter.from_peft(tmp_path / "theirs", shape)
    assert adapter.name == "theirs"
    model = fresh(folder)
    with torch.no_grad():
        base = model(IDS).logits
        with carrying(model, adapter):
            ours = model(IDS).logits
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
        assert (ours - base).abs().max() > 0.01
        assert torch.equal(model(IDS).logits, base)

        adapter.save_peft(tmp_path / "ours")
        loaded = PeftModel.from_pretrained(model, tmp_path / "ours")
        torch.testing.assert_close(loaded(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    again = Adapter.from_peft(tmp_path / "ours", shape, "other")
    assert (again.name, again.digest, again.bytes) == ("other", adapter.digest, adapter.bytes)


def test_two_adapters_add_up(folder: Path, shape: Shape, tmp_path: Path) -> None:
    trained(folder, tmp_path / "a", seed=1, r=2, target_modules=["q_proj", "up_proj"])
    trained(folder, tmp_path / "b", seed=2, r=3, target_modules=["q_proj", "o_proj"])
    model = PeftModel.from_pretrained(fresh(folder), tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", adapter_name="b")
    model.base_model.set_adapter(["a", "b"])
    with torch.no_grad():
        wanted = model(IDS).logits
        ours, other = [Adapter.from_peft(tmp_path / n, shape) for n in "ab"], fresh(folder)
        with carrying(other, *ours):
            torch.testing.assert_close(other(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_shape_of_a_configuration_is_that_of_the_network(kind: str, tmp_path: Path) -> None:
    model = network(str(checkpoint(tmp_path, kind)))
    shape = Shape.of(model)
    assert shape == Shape.of_config(model.config, torch.float32, torch.device("cpu"))
    assert shape.layers == 2 and set(shape.sizes) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert shape.sizes["k_proj"] == tuple(model.model.layers[0].self_attn.k_proj.weight.shape)
    assert shape.path(1, "up_proj") == "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"peft_type": "IA3"}, ["IA3", "LORA"]),
        ({"use_dora": True}, ["use_dora"]),
        ({"bias": "all"}, ["bias='all'"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save"]),
        ({"trainable_token_indices": [1]}, ["trainable_token_indices"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4", "base"]),
        ({"a_key_of_later": {"x": 1}}, ["a_key_of_later"]),
        ({"target_modules": None}, ["target_modules=None"]),
        ({"target_modules": 3}, ["target_modules=3", "str or list"]),
        ({"rank_pattern": [1]}, ["rank_pattern=[1]", "dict"]),
        ({"layers_to_transform": "0"}, ["layers_to_transform='0'"]),
        ({"target_modules": "(q_proj"}, ["'(q_proj'", "regular expression"]),
        ({"target_modules": r"((.+?)+?)+?(?<!j)"}, ["too long", "list"]),
        ({"target_modules": ["v_proj"]}, ["leaves out", "q_proj"]),
        ({"target_modules": ["q_proj", "v_proj"]}, ["lacks lora_A", "v_proj"]),
        ({"r": 3}, ["rank 3", "[2, 64]"]),
        ({"rank_pattern": {"q_proj": "many"}}, ["'many'"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha nan"]),
        ({"lora_alpha": 1e300}, ["scale", "torch.float32"]),
    ],
)
def test_a_configuration_that_is_not_implemented_is_refused_by_name(
    plain: Path, shape: Shape, tmp_path: Path, options: dict[str, Any], named: list[str]
) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    edit(tmp_path, **options)
    with pytest.raises(AdapterInputError) as caught:
        Adapter.from_peft(tmp_path, shape)
    assert all(word in str(caught.value) for word in named), caught.value
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("q_proj.*[(0", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("q_proj.*(", max_size=6), inner)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(key=st.sampled_from(sorted(READ)), value=json_values)
def test_any_value_is_understood_or_refused(
    plain: Path, shape: Shape, tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    shutil.copytree(plain, folder, dirs_exist_ok=True)
    edit(folder, **{key: value})
    try:
        adapter = Adapter.from_peft(folder, shape)
    except AdapterInputError as error:
        assert "\n" not in str(error)
    else:
        assert {pair.rank for pair in adapter.pairs.values()} == {2}


def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    next(iter(tensors.values()))[0, 0] = float("inf")
    return tensors


def moved(old: str, new: str) -> Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (spoil, ["layer 0, q_proj", "not finite"]),
        (moved("layers.1.", "layers.7."), ["layers.7", "2 layers"]),
        (moved("q_proj", "q_prj"), ["q_prj", "did you mean 'q_proj'?"]),
        (moved("model.layers.0.self_attn.q_proj", "lm_head"), ["lm_head", "blocks"]),
        (moved("lora_A.weight", "lora_A.bias"), ["lora_A.bias"]),
        (lambda t: {k: v[:, :-1] for k, v in t.items() if "lora_A" in k}, ["lacks lora_B"]),
        (
            lambda t: {k: v[:, :-1].clone() if "_A" in k else v for k, v in t.items()},
            ["q_proj", "A has shape [2, 63]", "[2, 64]"],
        ),
        (
            lambda t: {k: v[:, :-1].clone() if "_B" in k else v for k, v in t.items()},
            ["q_proj", "B has shape [64, 1]", "[64, 2]"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    plain: Path, shape: Shape, tmp_path: Path, change: Any, named: list[str]
) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    tensors = change(load_file(tmp_path / WEIGHTS))
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterInputError) as caught:
        Adapter.from_peft(tmp_path, shape)
    assert all(word in str(caught.value) for word in named), caught.value


def test_folders_without_safetensors_are_refused(plain: Path, shape: Shape, tmp_path: Path) -> None:
    with pytest.raises(AdapterInputError, match="no readable adapter_config"):
        Adapter.from_peft(tmp_path / "nowhere", shape)
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-9])
    with pytest.raises(AdapterInputError, match="cannot be read"):
        Adapter.from_peft(tmp_path, shape)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterInputError, match=r"adapter_model\.bin, a pickle"):
        Adapter.from_peft(tmp_path, shape)
    (tmp_path / CONFIG).write_text("[1]")
    with pytest.raises(AdapterInputError, match="only LORA"):
        Adapter.from_peft(tmp_path, shape)


def pair(shape: Shape, module: str, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    out, width = shape.sizes[module]
    draw = torch.Generator().manual_seed(rank)
    return torch.randn(rank, width, generator=draw), torch.randn(out, rank, generator=draw)


def test_tensors_in_memory_are_copied_and_scaled(shape: Shape) -> None:
    a, b = pair(shape, "up_proj")
    wanted = 3 * b @ a
    adapter = Adapter.from_tensors("mine", {(1, "up_proj"): (a, b)}, 3, shape)
    a.zero_()
    kept = adapter.pairs[1, "up_proj"]
    torch.testing.assert_close(kept.b @ kept.a, wanted)
    assert kept.rank == 2 and adapter.bytes == 4 * 2 * (64 + 128)
    with pytest.raises(TypeError):
        adapter.pairs[0, "up_proj"] = kept  # type: ignore[index]


def test_the_digest_is_that_of_the_content(shape: Shape) -> None:
    two = pair(shape, "up_proj")
    one = Adapter.from_tensors("a", {(1, "up_proj"): two}, 1, shape)
    assert one.digest == Adapter.from_tensors("b", {(1, "up_proj"): two}, 1.0, shape).digest
    others = [
        Adapter.from_tensors("a", {(0, "up_proj"): two}, 1, shape),
        Adapter.from_tensors("a", {(1, "gate_proj"): two}, 1, shape),
        Adapter.from_tensors("a", {(1, "up_proj"): two}, 2, shape),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 4
    assert one.renamed("c").digest == one.digest


@pytest.mark.parametrize(
    ("site", "named"),
    [((0, "lm_head"), "lm_head"), ((2, "up_proj"), "layer 2"), ((0, "down_proj"), r"\[2, 64\]")],
)
def test_tensors_in_memory_of_another_model_are_refused(
    shape: Shape, site: tuple[int, str], named: str
) -> None:
    with pytest.raises(AdapterInputError, match=named):
        Adapter.from_tensors("x", {site: pair(shape, "up_proj")}, 1, shape)


def test_empty_adapters_are_refused(shape: Shape) -> None:
    with pytest.raises(AdapterInputError, match="no tensors"):
        Adapter.from_tensors("x", {}, 1, shape)
    with pytest.raises(AdapterInputError, match="empty name"):
        Adapter.from_tensors("", {(0, "up_proj"): pair(shape, "up_proj")}, 1, shape)


def some(shape: Shape, rank: int = 2) -> Adapter:
    return Adapter.from_tensors("some", {(0, "up_proj"): pair(shape, "up_proj", rank)}, 1, shape)


def test_names_lead_to_adapters(plain: Path, shape: Shape, tmp_path: Path) -> None:
    adapters = Adapters(shape)
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    adapters.attach("law", tmp_path)
    adapters.attach("verse", some(shape))
    assert adapters.names() == ["law", "verse"] and adapters.get("verse").name == "verse"
    assert adapters.attach("verse", some(shape)) is adapters.get("verse")
    with pytest.raises(AdapterInputError, match="another adapter is attached as 'verse'"):
        adapters.attach("verse", some(shape, rank=3))
    with pytest.raises(UnknownName, match="did you mean 'verse'"):
        adapters.get("vers")
    adapters.detach("verse")
    with pytest.raises(UnknownName):
        adapters.detach("verse")
    assert adapters.bytes == adapters.get("law").bytes


def test_an_adapter_in_use_stays_attached(shape: Shape) -> None:
    adapters = Adapters(shape)
    adapters.attach("a", some(shape))
    adapters.attach("b", some(shape, rank=3))
    assert [one.name for one in adapters.acquire("r1", ("b", "a"))] == ["b", "a"]
    with pytest.raises(UnknownName):
        adapters.acquire("r2", ("a", "c"))
    with pytest.raises(InferenceInputError, match="more than once"):
        adapters.acquire("r2", ("a", "a"))
    assert adapters.acquire("r3", ()) == ()
    with pytest.raises(AdapterInUse, match="request 'r1'"):
        adapters.detach("a")
    adapters.release("r1")
    adapters.release("r1")
    adapters.detach("a")


def test_the_byte_limit_holds(shape: Shape) -> None:
    one = some(shape)
    adapters = Adapters(shape, max_bytes=one.bytes)
    adapters.attach("one", one)
    with pytest.raises(AdapterInputError, match="0 of"):
        adapters.attach("two", some(shape, rank=3))
    adapters.detach("one")
    adapters.attach("two", one)
    with pytest.raises(AdapterInputError, match="max_bytes=-1"):
        Adapters(shape, max_bytes=-1)


def test_adapters_of_another_type_are_refused(folder: Path, shape: Shape) -> None:
    half = Shape.of_config(network(str(folder)).config, torch.bfloat16, shape.device)
    with pytest.raises(AdapterInputError, match="another model, type or device"):
        Adapters(shape).attach("a", some(half))


def test_many_threads_leave_nothing_held(shape: Shape) -> None:
    adapters, faults = Adapters(shape), []
    adapters.attach("a", some(shape))

    def work(number: int) -> None:
        for turn in range(50):
            request = f"{number}-{turn}"
            try:
                adapters.acquire(request, ("a",))
            except UnknownName:
                continue
            try:
                adapters.detach("a")
                faults.append(request)
            except AdapterInUse:
                adapters.release(request)

    threads = [Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    adapters.detach("a")
