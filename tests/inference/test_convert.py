"""A GGUF file comes out as the same model, tokenizer and chat template, in safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inference import Message, Request, SamplingParams
from inference.models import load_tokenizer
from inference.models.convert import convert_gguf
from inference.native.engine import NativeEngine
from tests.inference.conftest import open_engine
from tests.inference.tiny import TEMPLATE, checkpoint, tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, block, inner = name.split(".", 3)
        return f"blk.{block}.{NAMES[inner.removesuffix('.weight')]}.weight"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def write_gguf(folder: Path, path: Path, pre: str) -> dict[str, torch.Tensor]:
    """Quantise a checkpoint to a GGUF file by the format's rules; returns what it must read as."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    words = tokenizer()
    core = json.loads(words.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(core["vocab"], key=core["vocab"].__getitem__))
    special = set(words.added_tokens_decoder)
    writer.add_token_types(
        [TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(len(words))]
    )
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_bos_token_id(words.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    stored = {}
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        quantised = data.ndim == 2 and data.shape[1] % 32 == 0
        if quantised:  # what the file can hold
            packed = quants.quantize(data, GGMLQuantizationType.Q8_0)
            data = quants.dequantize(packed, GGMLQuantizationType.Q8_0)
        stored[name] = torch.tensor(data)
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # GGUF pairs the two halves of a head's rotation
                rows = data.reshape(heads, 2, -1, data.shape[1])
                data = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(data.shape)
        if quantised:
            packed = quants.quantize(data, GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_a_gguf_file_becomes_the_same_model(tmp_path: Path, pre: str) -> None:
    source, out = checkpoint(tmp_path / "source"), tmp_path / "out"
    stored = write_gguf(source, tmp_path / "tiny.gguf", pre)
    convert_gguf(tmp_path / "tiny.gguf", out)
    engine = open_engine(out)
    got = load_file(out / "model.safetensors")
    assert got.keys() == stored.keys()
    for name, tensor in stored.items():
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], tensor), name
    request = Request(messages=[Message("user", "fox")], sampling=SamplingParams(max_tokens=5))
    assert engine.count_tokens(request) == open_engine(source).count_tokens(request)
    assert len(engine.generate([request])[0].token_ids) > 0
    # Numbers fall into digits for SmolLM, so the spaces before one stay together.
    cut = load_tokenizer(str(out)).pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in cut] == (
        ["a", "ĠĠ", "1", "2"] if pre == "smollm" else ["a", "Ġ", "Ġ12"]
    )


@pytest.mark.default_model
def test_the_default_model_cuts_numbers_into_digits(default_engine: NativeEngine) -> None:
    words = load_tokenizer("default")
    tokens = words.encode("In  1984", add_special_tokens=False).tokens
    assert tokens == ["In", "ĠĠ", "1", "9", "8", "4"]
    assert default_engine.context_length == 8192
