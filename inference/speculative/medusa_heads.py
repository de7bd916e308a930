"""The heads of Medusa as they are stored and computed: small blocks before the model's own head.

Source: Medusa (arXiv 2401.10774), section 2.1: u = h + SiLU(W h + b), one block per head. The
output matrix is the model's own, frozen, as the released trainer has it; an own one of each head
would be 28 million weights for the default model.

Heads may also read the token that was drawn from h: u = h + SiLU(W h + D e + b), where e is its
embedding at unit mean square. It is known before they guess, and h alone does not say which of its
likely tokens it was. Source: Hydra (arXiv 2402.05109), whose heads read the guesses along a path
too, which these do not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear, rms_norm, silu

from inference.errors import DrafterInputError
from inference.models.manifest import sha256
from inference.speculative.choices import Choice, read_choices, spell_choices

WEIGHTS = "heads.safetensors"
CARD = "card.json"


@dataclass(frozen=True, slots=True)
class MedusaHeads:
    """K heads: `blocks` [K, hidden, hidden], `biases` [K, hidden].

    `tokens` are the ids that heads guess among, all of the vocabulary where it is None. `base` is
    the digest of the model they were trained on (`Model.weights_digest`), `model` what it was
    called; `choices` is the tree that suits them, the likeliest node first. `drawn`
    [K, hidden, hidden] are the matrices D of heads that read the drawn token.
    """

    blocks: torch.Tensor
    biases: torch.Tensor
    tokens: torch.Tensor | None
    base: str
    model: str
    choices: tuple[Choice, ...]
    drawn: torch.Tensor | None = None

    @property
    def count(self) -> int:
        """K."""
        return len(self.blocks)

    def states(self, hidden: torch.Tensor, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """What the model's head reads for each guess: [rows, K, hidden] of states [rows, hidden].

        Row t belongs to the position whose own prediction is t + 1; state k is for t + 2 + k.
        `embeddings` [rows, hidden] are those of the tokens t + 1, for heads with `drawn`.
        """
        weight, bias = self.product(self.count)
        read = hidden
        if self.drawn is not None:
            assert embeddings is not None, "heads that read the drawn token were given none"
            read = torch.cat([hidden, unit(embeddings)], dim=1)
        return hidden[:, None] + silu(linear(read, weight, bias).unflatten(1, (self.count, -1)))

    def product(self, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias by which the first `depth` heads read in one product.

        They read states, beside them the embeddings at unit mean square where there is `drawn`.
        """
        blocks = self.blocks[:depth]
        if self.drawn is not None:
            blocks = torch.cat([blocks, self.drawn[:depth]], dim=2)
        return blocks.flatten(0, 1), self.biases[:depth].flatten()

    def to(self, dtype: torch.dtype, device: torch.device) -> MedusaHeads:
        """The same heads to compute with."""
        blocks, biases = (x.to(device, dtype) for x in (self.blocks, self.biases))
        drawn = None if self.drawn is None else self.drawn.to(device, dtype)
        return replace(self, blocks=blocks, biases=biases, drawn=drawn)

    def save(self, folder: Path) -> None:
        """Write heads.safetensors, blocks and biases in bfloat16; a card is the caller's to add."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "blocks": self.blocks.detach().to("cpu", torch.bfloat16).contiguous(),
            "biases": self.biases.detach().to("cpu", torch.bfloat16).contiguous(),
        }
        if self.drawn is not None:
            tensors["drawn"] = self.drawn.detach().to("cpu", torch.bfloat16).contiguous()
        if self.tokens is not None:
            tensors["tokens"] = self.tokens.to("cpu", torch.int32).contiguous()
        facts = {"base": self.base, "model": self.model, "choices": spell_choices(self.choices)}
        save_file(tensors, folder / WEIGHTS, facts)

    @classmethod
    def load(cls, folder: Path) -> MedusaHeads:
        """Read what `save` wrote, and hold it against the card; DrafterInputError if it differs."""
        path = folder / WEIGHTS
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            stated, digest = card["files"][WEIGHTS], sha256(path)
            with safe_open(path, framework="pt") as found:
                facts = found.metadata() or {}
            tensors = load_file(path)
            tokens = tensors["tokens"].long() if "tokens" in tensors else None
            choices = read_choices(facts["choices"])
            blocks, biases = tensors["blocks"], tensors["biases"]
            drawn = tensors.get("drawn")
            heads = cls(blocks, biases, tokens, facts["base"], facts["model"], choices, drawn)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DrafterInputError(
                f"heads {str(folder)!r} cannot be read ({type(error).__name__}: {error}); they are "
                f"a folder with {WEIGHTS} and {CARD}, as python -m inference.training.medusa "
                "writes it",
                "heads",
            ) from error
        if digest != stated:
            raise DrafterInputError(
                f"heads {str(path)!r} are not those of their card: sha256 {digest[:12]} and not "
                f"{str(stated)[:12]}; fetch or train them again",
                "heads",
            )
        heads._check(folder)
        return heads

    def _check(self, folder: Path) -> None:
        shape = tuple(self.blocks.shape)
        deepest = max(map(len, self.choices))
        if len(shape) != 3 or shape[1] != shape[2] or tuple(self.biases.shape) != shape[:2]:
            raise DrafterInputError(
                f"heads {str(folder)!r} have blocks {list(shape)} and biases "
                f"{list(self.biases.shape)}; they must be [K, hidden, hidden] and [K, hidden]",
                "heads",
            )
        if self.drawn is not None and tuple(self.drawn.shape) != shape:
            raise DrafterInputError(
                f"heads {str(folder)!r} read the drawn token by {list(self.drawn.shape)} and the "
                f"state by {list(shape)}; the shapes must be equal",
                "heads",
            )
        if deepest > shape[0]:
            raise DrafterInputError(
                f"heads {str(folder)!r} are {shape[0]} and their choices reach {deepest} deep; "
                "train them again",
                "heads",
            )


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows [rows, hidden] of which the mean square is 1; embeddings of a token are mostly small."""
    return rms_norm(embeddings, embeddings.shape[-1:])
