"""The heads of Medusa as they are stored and computed: small blocks before the model's own head.

Source: Medusa (arXiv 2401.10774), section 2.1: u = h + SiLU(W h + b), one block per head. The
output matrix is the model's own, frozen, as the released trainer has it; an own one of each head
would be 28 million weights for the default model.

Heads may also be a chain: u_k = v + SiLU(W_k v + D_k e_k + b_k), where v is u_{k-1}, for the first
head h, and e_k the embedding of the token before, at unit mean square: of the one that was drawn
from h, then of the guesses. So a guess knows the path it continues. Source: Hydra (arXiv
2402.05109), section 3. Deviations: its heads read h and the embeddings of the whole path side by
side, these the state of the head before, so that each is of the same size; and the last of them may
be used further on, as ReDrafter's one recurrent head is (arXiv 2403.09919).
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
    [K, hidden, hidden] are the matrices D of a chain, whose last head guesses `again` times more.
    """

    blocks: torch.Tensor
    biases: torch.Tensor
    tokens: torch.Tensor | None
    base: str
    model: str
    choices: tuple[Choice, ...]
    drawn: torch.Tensor | None = None
    again: int = 0

    @property
    def count(self) -> int:
        """K."""
        return len(self.blocks)

    @property
    def depth(self) -> int:
        """How many tokens behind the drawn one are guessed."""
        return self.count + self.again

    def states(
        self, hidden: torch.Tensor, embeddings: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """As `ahead` gives them."""
        return ahead(self.blocks, self.biases, self.drawn, self.depth, hidden, embeddings)

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
        if self.again:
            facts["again"] = str(self.again)
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
            drawn, again = tensors.get("drawn"), int(facts.get("again", 0))
            base, model = facts["base"], facts["model"]
            heads = cls(blocks, biases, tokens, base, model, choices, drawn, again)
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
                f"heads {str(folder)!r} read tokens by {list(self.drawn.shape)} and states by "
                f"{list(shape)}; the shapes must be equal",
                "heads",
            )
        if self.again < 0 or (self.again and self.drawn is None):
            raise DrafterInputError(
                f"heads {str(folder)!r} say that the last guesses {self.again} times more, which "
                "only a chain can, and not less than never; train them again",
                "heads",
            )
        if deepest > self.depth:
            raise DrafterInputError(
                f"heads {str(folder)!r} guess {self.depth} tokens and their choices reach "
                f"{deepest} deep; train them again",
                "heads",
            )


def ahead(
    blocks: torch.Tensor,
    biases: torch.Tensor,
    drawn: torch.Tensor | None,
    depth: int,
    hidden: torch.Tensor,
    embeddings: torch.Tensor | None,
) -> list[torch.Tensor]:
    """What the model's head reads for each guess along a text: for guess k [rows - k, hidden].

    Row t of `hidden` [rows, hidden] belongs to the position whose own prediction is t + 1; state k
    of it is for t + 2 + k. A chain reads `embeddings` [rows, hidden] of the tokens t + 1.
    """
    if drawn is None:
        pairs = zip(blocks[:depth], biases[:depth], strict=True)
        found = [hidden + silu(linear(hidden, block, bias)) for block, bias in pairs]
        return [state[: max(0, len(hidden) - at)] for at, state in enumerate(found)]
    assert embeddings is not None, "a chain of heads was given no embeddings"
    read, state, found = unit(embeddings), hidden, []
    for at in range(depth):
        head = min(at, len(blocks) - 1)
        state, token = state[: max(0, len(hidden) - at)], read[at:]
        inner = linear(state, blocks[head], biases[head]) + linear(token, drawn[head])
        state = state + silu(inner)
        found.append(state)
    return found


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows [rows, hidden] of which the mean square is 1; embeddings of a token are mostly small."""
    return rms_norm(embeddings, embeddings.shape[-1:])
