"""Decoding written plainly over transformers' modules: what a cache policy must come out at.

One token at a time, one layer and head at a time, attention over exactly the entries that a rule
keeps, no cache class, no batching. Slow, and independent of the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Entry = tuple[torch.Tensor, torch.Tensor, int]
"""Key and value [head_dim] of one token and its position; the key unrotated under `reindex`."""

Rule = Callable[[int, int, list[Entry], int], list[Entry]]
"""Layer, head, what is held, tokens read -> what stays."""


@dataclass
class Dense:
    """Greedy decoding of one prompt; `rule` decides after every `chunk` prompt tokens and later.

    `skip` layers are left out for tokens behind the prompt.
    """

    network: Any
    rule: Rule | None = None
    chunk: int | None = None
    reindex: bool = False
    skip: range = range(0)
    logits: list[torch.Tensor] = field(default_factory=list)
    held: list[list[list[Entry]]] = field(default_factory=list)
    counts: list[list[list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.network.config
        self.held = [
            [[] for _ in range(config.num_key_value_heads)] for _ in range(config.num_hidden_layers)
        ]

    @torch.inference_mode()
    def generate(self, prompt: list[int], produced: int) -> list[int]:
        """The tokens that follow; `logits` and `counts` get a row for each."""
        ids = list(prompt)
        stop = self.network.config.eos_token_id
        for at in range(len(prompt) + produced - 1):
            row = self._token(ids[at], at, len(prompt))
            if at >= len(prompt) - 1:
                self.logits.append(row)
                self.counts.append([[len(head) for head in layer] for layer in self.held])
                ids.append(int(row.argmax()))
                if ids[-1] == stop:
                    break
        return ids[len(prompt) :]

    def positions(self, layer: int, head: int) -> list[int]:
        """Where the entries of a head come from."""
        return [position for _, _, position in self.held[layer][head]]

    def _token(self, token: int, at: int, prompt: int) -> torch.Tensor:
        core = self.network.model
        hidden = core.embed_tokens(torch.tensor([[token]]))
        for number, layer in enumerate(core.layers):
            if number in self.skip and at >= prompt:
                continue
            mixed = self._attention(number, layer.self_attn, layer.input_layernorm(hidden), at)
            hidden = hidden + mixed
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            # Whether a decision is due depends on how many tokens were read, on nothing else.
            due = at >= prompt - 1 or (self.chunk is not None and (at + 1) % self.chunk == 0)
            if self.rule is not None and due:
                for head, entries in enumerate(self.held[number]):
                    self.held[number][head] = self.rule(number, head, entries, at + 1)
        return self.network.lm_head(core.norm(hidden))[0, 0].clone()

    def _attention(self, number: int, module: Any, x: torch.Tensor, at: int) -> torch.Tensor:
        width = module.head_dim
        query, key, value = (
            part(x).view(1, 1, -1, width) for part in (module.q_proj, module.k_proj, module.v_proj)
        )
        if hasattr(module, "q_norm"):
            query, key = module.q_norm(query), module.k_norm(key)
        window = getattr(self.network.config, "sliding_window", None)
        query, key, value = query[0, 0], key[0, 0], value[0, 0]
        groups = len(query) // len(key)
        found = []
        for head, entries in enumerate(self.held[number]):
            own = key[head] if self.reindex else self._turn(key[head], at)
            entries.append((own, value[head], at))
            keys = torch.stack([entry[0] for entry in entries])
            values = torch.stack([entry[1] for entry in entries])
            places, mine = [entry[2] for entry in entries], at
            if self.reindex:
                places, mine = list(range(len(entries))), len(entries) - 1
                keys = torch.stack([self._turn(k, p) for k, p in zip(keys, places, strict=True)])
            seen = [window is None or place > mine - window for place in places]
            for one in query[head * groups : (head + 1) * groups]:
                scores = keys @ self._turn(one, mine) * module.scaling
                scores[~torch.tensor(seen)] = -torch.inf
                found.append(torch.softmax(scores, dim=0) @ values)
        return module.o_proj(torch.cat(found)[None, None])

    def _turn(self, x: torch.Tensor, position: int) -> torch.Tensor:
        place = torch.tensor([[position]])
        cosine, sine = self.network.model.rotary_emb(x, place)
        turned, _ = apply_rotary_pos_emb(x[None, None, None], x[None, None, None], cosine, sine)
        return turned[0, 0, 0]
