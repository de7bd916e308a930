"""A forward pass of Llama-like models, written for short steps: few operations, fused weights.

The arithmetic is that of transformers' Llama, Mistral, Qwen2 and Qwen3: RMS norms in float32,
rotary positions, grouped-query attention, SiLU-gated MLP. Query, key and value share one product,
gate and up another. Every place where a method attaches is here: adapters after a product, a
recorder for hidden states, queries, keys and values, layers that some rows skip.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu

from inference.native.attention import Heads, attend
from inference.native.checkpoint import Checkpoint
from inference.native.linear import Linear
from inference.native.step import Step

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types, as config.json names them."""

EMBEDDING = "model.embed_tokens.weight"


def runs_lean(config: Any) -> bool:
    """Whether a checkpoint of this configuration is one this forward pass computes exactly."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and getattr(config, "hidden_act", None) == "silu"
        and getattr(config, "quantization_config", None) is None
        and float(rope.get("partial_rotary_factor", 1.0)) == 1.0
    )


class Lean:
    """Weights of a Llama-like model on one device, and its forward pass."""

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        *,
        pack: bool = True,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._source = (folder, name)
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.head_dim = int(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.scale = self.head_dim**-0.5
        self.rotary = Rotary(config, device)
        # What was read stays in memory until its file is closed, so each layer opens it anew; the
        # largest tensor comes first, while there is little else.
        with Checkpoint(folder, name) as found:
            self._tied = bool(getattr(config, "tie_word_embeddings", False))
            self._outputs = EMBEDDING if self._tied else "lm_head.weight"
            self._head = Linear(self.tensor(found, self._outputs), pack=pack)
            self._norm = self.tensor(found, "model.norm.weight")
        self.layers: list[Layer] = []
        for at in range(int(config.num_hidden_layers)):
            with Checkpoint(folder, name) as found:
                self.layers.append(Layer(self, found, at, pack=pack))
        with Checkpoint(folder, name) as found:
            self._rows = found.table(EMBEDDING)
            self._written = self._rows if self._tied else found.table(self._outputs)
            self._table: torch.Tensor | None = None
            if device.type != "cpu":
                self._table = self.tensor(found, EMBEDDING)
        self.vocabulary = self._rows.rows
        self.width = self._head.shape[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as their shapes and type give them, tied ones once."""
        inner = sum(layer.elements for layer in self.layers)
        head = self._head.shape[0] * self._head.shape[1]
        table = 0 if self._tied else self._rows.rows * self._rows.width
        return int((inner + head + table) * self.dtype.itemsize)

    def tensor(self, found: Checkpoint, name: str) -> torch.Tensor:
        """A tensor in this model's type on its device, not sharing the file's pages."""
        return found.read(name).to(self.device, self.dtype, copy=True)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [rows, hidden] of token ids [rows]."""
        if self._table is None:
            return self._rows(ids).to(self.dtype)
        return embedding(ids, self._table)

    def outputs(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [rows, hidden] of the output matrix for token ids [rows]; few, they are not kept."""
        if self._head.packed:
            return self._written(ids).to(self.dtype)
        return self._head.weight[ids]

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm over the last dimension; the mean of squares is taken in float32."""
        return rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def first(self, layers: int) -> Lean:
        """The first layers with this model's norm and head: an early exit, sharing the weights."""
        early = copy(self)
        early.layers = self.layers[:layers]
        return early

    def readout(self, tokens: torch.Tensor | None = None) -> Linear:
        """The language model head, from final states [rows, hidden] to logits [rows, vocabulary].

        With `tokens` [n] its rows of these ids only, in their order, as weights of their own.
        """
        if tokens is None:
            return self._head
        with Checkpoint(*self._source) as found:
            rows = found.read(self._outputs)[tokens]
        return Linear(rows.to(self.device, self.dtype))

    def forward(self, step: Step) -> torch.Tensor | None:
        """Float32 logits [kept, vocabulary] of the rows a step keeps, or None."""
        hidden = self.embed(step.ids)
        whole = self.rotary(step.positions, self.dtype)
        for layer in self.layers:
            if step.recorder is not None:
                step.recorder.hidden(step, layer.index, hidden)
            part = step.active(layer.index)
            if part is None:
                hidden = layer(hidden, whole, step)
            else:
                inner, rows = part
                if len(rows):
                    turned = whole[0][rows], whole[1][rows]
                    hidden = hidden.index_copy(0, rows, layer(hidden[rows], turned, inner))
        if step.recorder is None and not len(step.kept):
            return None
        hidden = self.norm(hidden, self._norm)
        if step.recorder is not None:
            step.recorder.hidden(step, len(self.layers), hidden)
        if not len(step.kept):
            return None
        kept = hidden[step.kept]
        if step.shows_hidden:
            step.hidden = kept
        return self.project(kept)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [rows, vocabulary] of final hidden states [rows, hidden]."""
        return self._head(hidden).float()


class Layer:
    """One decoder layer."""

    def __init__(self, model: Lean, found: Checkpoint, index: int, *, pack: bool) -> None:
        self.index = index
        self._model = model
        prefix = f"model.layers.{index}."

        def fused(part: str, *names: str) -> Linear:
            weights = [found.read(f"{prefix}{part}.{name}.weight") for name in names]
            biases = [found.find(f"{prefix}{part}.{name}.bias") for name in names]
            bias = None
            if any(one is not None for one in biases):
                pieces = [
                    weight.new_zeros(len(weight)) if one is None else one
                    for weight, one in zip(weights, biases, strict=True)
                ]
                bias = torch.cat(pieces).to(model.device, model.dtype)
            whole = torch.cat([one.to(model.device, model.dtype) for one in weights])
            return Linear(whole, bias, pack=pack)

        self._qkv = fused("self_attn", "q_proj", "k_proj", "v_proj")
        self._out = fused("self_attn", "o_proj")
        self._gate_up = fused("mlp", "gate_proj", "up_proj")
        self._down = fused("mlp", "down_proj")
        self._before = model.tensor(found, f"{prefix}input_layernorm.weight")
        self._between = model.tensor(found, f"{prefix}post_attention_layernorm.weight")
        self._head_norms: tuple[torch.Tensor, torch.Tensor] | None = None
        if f"{prefix}self_attn.q_norm.weight" in found:
            self._head_norms = (
                model.tensor(found, f"{prefix}self_attn.q_norm.weight"),
                model.tensor(found, f"{prefix}self_attn.k_norm.weight"),
            )
        types = getattr(model.config, "layer_types", None)
        slides = types is None or types[index] == "sliding_attention"
        self._window: int | None = getattr(model.config, "sliding_window", None) if slides else None
        queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
        wide = int(model.config.intermediate_size)
        self._parts = {
            "qkv": {
                "q_proj": slice(0, queries),
                "k_proj": slice(queries, queries + keys),
                "v_proj": slice(queries + keys, queries + 2 * keys),
            },
            "out": {"o_proj": slice(None)},
            "gate_up": {"gate_proj": slice(0, wide), "up_proj": slice(wide, 2 * wide)},
            "down": {"down_proj": slice(None)},
        }

    @property
    def elements(self) -> int:
        """Number of weights."""
        products = (self._qkv, self._out, self._gate_up, self._down)
        return sum(one.shape[0] * one.shape[1] for one in products) + 2 * len(self._before)

    def __call__(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], step: Step
    ) -> torch.Tensor:
        """Hidden states [rows, hidden] after this layer."""
        model = self._model
        qkv = self._project("qkv", self._qkv, model.norm(hidden, self._before), step)
        qkv = qkv.unflatten(1, (-1, model.head_dim))
        queries, both = model.heads, model.heads + model.kv_heads
        value = qkv[:, both:]
        turning = qkv[:, :both]
        if self._head_norms is not None:
            turning = torch.cat(
                [
                    model.norm(qkv[:, :queries], self._head_norms[0]),
                    model.norm(qkv[:, queries:both], self._head_norms[1]),
                ],
                dim=1,
            )
        turned = rotate(turning, *rotary)
        heads = Heads(
            turned[:, :queries],
            turned[:, queries:],
            value,
            (turning[:, :queries], turning[:, queries:]),
        )
        if step.recorder is not None:
            step.recorder.qkv(step, self.index, heads)
        found = attend(step, self.index, heads, model.scale, self._window)
        hidden = hidden + self._project("out", self._out, found.flatten(1), step)
        inner = self._project("gate_up", self._gate_up, model.norm(hidden, self._between), step)
        gate, up = inner.chunk(2, dim=-1)
        return hidden + self._project("down", self._down, silu(gate) * up, step)

    def _project(self, part: str, weight: Linear, x: torch.Tensor, step: Step) -> torch.Tensor:
        y = weight(x)
        if step.lora is not None:
            step.lora.add(self.index, self._parts[part], x, y)
        return y


class Rotary:
    """Rotary positions (Su et al. 2021) with the frequencies transformers gives a configuration."""

    def __init__(self, config: Any, device: torch.device) -> None:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        source = LlamaRotaryEmbedding(config).to(device)
        self._frequencies: torch.Tensor = source.inv_freq.float()
        self._scaling = float(source.attention_scaling)

    def __call__(
        self, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and signed sine [positions, 1, head_dim] for `rotate`."""
        angles = positions.float()[:, None, None] * self._frequencies
        cosine, sine = angles.cos() * self._scaling, angles.sin() * self._scaling
        return (
            torch.cat([cosine, cosine], dim=-1).to(dtype),
            torch.cat([-sine, sine], dim=-1).to(dtype),
        )


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """x [rows, heads, head_dim] turned by its position; `sine` is negative in its first half."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)
