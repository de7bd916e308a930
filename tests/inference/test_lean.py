"""The lean forward pass gives transformers' logits; what it does not cover, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, PhiConfig, SmolLM3Config

from inference import InferenceError, InferenceInputError, Request
from inference.errors import Unsupported
from inference.guidance import Context, ContextAware
from inference.kv import StreamingLLM
from inference.native import linear
from inference.native.lean import Lean
from inference.native.linear import Linear
from inference.native.model import Model
from inference.native.plain import Plain
from inference.native.runner import Runner
from inference.native.sequence import Sequence
from inference.requests import SamplingParams
from inference.taps import Taps
from tests.inference.test_batching import opened, reference, requests_for, tokens
from tests.inference.tiny import CONFIGS, network, tokenizer

LENGTH = 40
SHORT = SamplingParams(max_tokens=8)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": ("llama", {"tied": True}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "yarn rope": ("llama", {"rope_parameters": YARN}),
    "llama one head": ("llama", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2 sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen2 window off": ("qwen2", {"use_sliding_window": False, "sliding_window": 9}),
    "qwen3": ("qwen3", {"head_dim": 16, "tied": True}),
    "qwen3 biases": ("qwen3", {"head_dim": 24, "attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral sliding": ("mistral", {"sliding_window": 11, "head_dim": 32}),
}


def save(folder: Path, config: Any) -> Path:
    """A checkpoint of any configuration whose norms and biases are not what they begin as."""
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def config_of(kind: type[Any], tied: bool = False, **options: Any) -> Any:
    words = tokenizer()
    given = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": words.eos_token_id,
        "tie_word_embeddings": tied,
        **options,
    }
    return kind(**given)


def logits(model: Model, ids: list[int]) -> torch.Tensor:
    """Logits of every position, the prompt in two pieces."""
    runner = Runner(model)
    row = Sequence(ids, blocks=list(range(len(ids))), wanted=0)
    found = []
    for count in (len(ids) // 3, len(ids) - len(ids) // 3):
        row.scheduled = count
        (result,) = runner.step([row])
        assert result.logits is not None
        found.append(result.logits.clone())
        row.cached += count
    return torch.cat(found)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", SHAPES)
def test_both_forward_passes_agree(
    tmp_path: Path, name: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = SHAPES[name]
    if packed:
        monkeypatch.setattr(linear, "SMALL", 0)
    folder = save(tmp_path, config_of(CONFIGS[kind], **options))
    lean = Model.load(folder, str(folder), "float32", "cpu", path="lean")
    plain = Model.load(folder, str(folder), "float32", "cpu", path="transformers")
    assert isinstance(lean.network, Lean) and isinstance(plain.network, Plain)
    products = [lean.network._head, *(layer._qkv for layer in lean.network.layers)]
    assert [one.packed for one in products] == [packed and linear.packs(torch.ones(1, 1))] * 4
    ids = torch.randint(4, 320, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        wanted = network(str(folder))(torch.tensor([ids])).logits[0]
    for model in (lean, plain):
        torch.testing.assert_close(logits(model, ids), wanted, rtol=1e-3, atol=1e-3)
    assert lean.network.weight_bytes == pytest.approx(plain.network.weight_bytes, rel=0.02)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 100])
def test_packed_products_equal_plain_ones(
    rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "SMALL", 0)
    torch.manual_seed(rows)
    weight, x = torch.randn(48, 32), torch.randn(rows, 32)
    added = torch.randn(48) if bias else None
    if not linear.packs(weight):
        pytest.skip("oneDNN packs no float32 weights on this machine")
    wanted = torch.nn.functional.linear(x, weight, added)
    packed, plain = Linear(weight.clone(), added), Linear(weight, added, pack=False)
    assert packed.packed and not plain.packed
    assert torch.equal(plain(x), wanted)
    torch.testing.assert_close(packed(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["smollm3", "phi"])
def uncovered(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model with rotary positions that only transformers' forward pass covers."""
    if request.param == "phi":
        options = {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}
        return save(tmp_path, config_of(PhiConfig, **options))
    return save(tmp_path, config_of(SmolLM3Config, no_rope_layer_interval=3))


def test_other_architectures_run_under_transformers(uncovered: Path) -> None:
    requests = requests_for(4, count=12)
    for options in ({}, {"step_tokens": 7, "forward": "transformers"}):
        with opened(uncovered, **options) as engine:
            assert engine._model().lean is None
            assert tokens(engine.generate(requests)) == reference(engine, requests)
            same = [
                Request(
                    prompt="fox", guidance=ContextAware(Context("The fox"), 0.0), sampling=SHORT
                ),
                Request(prompt="fox", sampling=SHORT),
            ]
            guided, plain = engine.generate(same)  # guidance needs no forward pass of ours
            assert guided.token_ids == plain.token_ids


def test_what_only_the_lean_forward_has_is_refused_by_name(uncovered: Path) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"kv": StreamingLLM()}, "a KV policy"),
        ({"skip_layers": (0, 1)}, "skipped layers"),
        ({"adapters": ("a",)}, "adapters"),
        ({"taps": Taps(lambda _: None)}, "taps"),
    ]
    with opened(uncovered) as engine:
        for options, name in asked:
            with pytest.raises(Unsupported, match=f"asks for {name}, which model .* cannot do"):
                engine.generate([Request(prompt="fox", **options)])
        beside = ContextAware(Context("fox", adapters=("a",)))
        with pytest.raises(Unsupported, match="takes no adapters"):
            engine.generate([Request(prompt="fox", guidance=beside)])
    with pytest.raises(InferenceInputError, match="there is no lean forward pass"):
        Model.load(uncovered, "it", "float32", "cpu", path="lean")


def test_a_gate_that_is_not_silu_is_not_ours(tmp_path: Path) -> None:
    folder = save(tmp_path, config_of(CONFIGS["llama"], hidden_act="gelu"))
    model = Model.load(folder, str(folder), "float32", "cpu")
    assert model.lean is None
    ids = list(range(5, 25))
    with torch.no_grad():
        wanted = network(str(folder))(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits(model, ids), wanted, rtol=1e-3, atol=1e-3)


def test_attention_that_caps_its_scores_is_refused(tmp_path: Path) -> None:
    options = {"head_dim": 16, "attn_logit_softcapping": 20.0, "sliding_window": 8}
    folder = save(tmp_path, config_of(Gemma2Config, **options))
    with pytest.raises(InferenceInputError, match="softcap"), opened(folder):
        pass


def sharded(folder: Path) -> None:
    """Spread the one weights file over three, with an index."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where: dict[str, str] = {}
    for n in range(3):
        part = {key: value for at, (key, value) in enumerate(whole.items()) if at % 3 == n}
        name = f"model-{n + 1:05}-of-00003.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    folder = save(tmp_path, config_of(CONFIGS["llama"]))
    ids = list(range(5, 25))
    wanted = logits(Model.load(folder, "it", "float32", "cpu", path="lean"), ids)
    sharded(folder)
    for path in ("lean", "transformers"):
        found = logits(Model.load(folder, "it", "float32", "cpu", path=path), ids)  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def unsafe(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def outside(folder: Path) -> None:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))


def no_head(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = load_file(file)
    del whole["lm_head.weight"]
    save_file(whole, file, metadata={"format": "pt"})


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def one_shard_less(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unsafe, r"no model.safetensors and only 'pytorch_model.bin', .*again, as safetensors"),
        (outside, "names '.*' outside the folder|outside"),
        (no_head, "lacks the tensor 'lm_head.weight'; fetch or convert"),
        (cut, "model.safetensors is damaged"),
        (one_shard_less, "there is no model-00002-of-00003.safetensors"),
    ],
)
def test_what_is_no_whole_safetensors_checkpoint_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = save(tmp_path, config_of(CONFIGS["llama"]))
    damage(folder)
    with pytest.raises(InferenceError, match=message):
        Model.load(folder, "it", "float32", "cpu")


def test_a_pickled_checkpoint_is_refused_under_transformers_too(tmp_path: Path) -> None:
    folder = save(tmp_path, config_of(CONFIGS["llama"]))
    unsafe(folder)
    with pytest.raises(InferenceError, match="fetch or convert the checkpoint again"):
        Model.load(folder, "it", "float32", "cpu", path="transformers")
