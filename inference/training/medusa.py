"""Training Medusa's heads: the model answers prompts, its states are kept, heads learn from them.

    python -m inference.training.medusa --out HEADS --work SCRATCH --documents data/corpus

Medusa-1 (arXiv 2401.10774, section 2.2.1): the model is frozen, each head learns the token it
stands for by cross entropy, head k weighted 0.8^k, on the answers' tokens only. Self-distilled
data (section 2.3.2), since what the model was tuned on is not ours to have. Deviations: prompts
are short templates of our own and, where asked for, those that the model writes itself (Magpie,
see `inference.training.asked`), rather than ShareGPT's; heads may learn the model's probabilities
in place of its tokens (`soft`), as distillation does and Medusa-1 does not; heads share the frozen
output matrix, of which they use the rows of the most frequent tokens, so that the softmax is over
those; tokens outside are not learned, and count as missed in every score; and unless told
otherwise heads are a chain that reads the tokens guessed before (Hydra, arXiv 2402.05109; see
`inference.speculative.medusa_heads`), here the true ones, as in its paper.

All stages go on where they were killed.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear, softmax

from inference.errors import InferenceInputError
from inference.models import resolve
from inference.models.manifest import sha256
from inference.native.checkpoint import Checkpoint
from inference.native.fingerprint import fingerprint
from inference.native.lean import EMBEDDING
from inference.speculative.choices import expected, grow
from inference.speculative.medusa_heads import WEIGHTS, MedusaHeads, ahead
from inference.training.answers import Answer, answer, digest, read
from inference.training.asked import asked
from inference.training.card import Card
from inference.training.loop import Plan, plan_of, train
from inference.training.scores import Ranks, baselines, ranks
from inference.training.seeds import read_passages, seeds

DECAY = 0.8
"""Weight of each further head in the loss."""

CALLED = "medusa"
"""The recipe, as cards name it."""


@dataclass(frozen=True, slots=True)
class MedusaOptions:
    """`heads` of them guess among the `tokens` most frequent ids; the tree has `nodes` nodes.

    With `chain` each reads the token before its own, and the last guesses `again` times more.
    `soft` is the temperature of the model's own probabilities that heads learn; None are tokens.
    """

    heads: int = 3
    tokens: int = 4096
    nodes: int = 32
    chain: bool = True
    again: int = 2
    soft: float | None = None

    def __post_init__(self) -> None:
        if self.soft is not None and not self.soft > 0:
            raise InferenceInputError(
                f"soft={self.soft!r} must be > 0; left out, heads learn the tokens themselves"
            )

    @property
    def depth(self) -> int:
        """How many tokens are guessed."""
        return self.heads + self.again * self.chain


@dataclass(frozen=True, slots=True)
class Target:
    """What heads stand on: the rows of the output matrix that they use, and whose they are."""

    name: str
    digest: str
    files: dict[str, str]
    tokens: torch.Tensor
    """[tokens], the ids"""
    output: torch.Tensor
    """[tokens, hidden], float32"""
    embedding: torch.Tensor | None = None
    """[vocabulary, hidden], float32, where heads are a chain"""


class Blocks(torch.nn.Module):  # type: ignore[misc]
    """The parameters of K heads; at the start each passes its input on unchanged."""

    def __init__(self, heads: int, width: int, chain: bool = False, again: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(heads, width, width))
        self.bias = torch.nn.Parameter(torch.zeros(heads, width))
        self.drawn = torch.nn.Parameter(torch.zeros(heads, width, width)) if chain else None
        self.depth = heads + again * chain

    def forward(
        self, hidden: torch.Tensor, embeddings: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """States as `ahead` gives them."""
        return ahead(self.weight, self.bias, self.drawn, self.depth, hidden, embeddings)

    def heads(self, on: Target) -> MedusaHeads:
        """Heads that share these parameters, with a tree of one node."""
        again = self.depth - len(self.weight)
        return MedusaHeads(
            self.weight, self.bias, on.tokens, on.digest, on.name, ((0,),), self.drawn, again
        )


def target(model: str, answers: Sequence[Answer], tokens: int, chain: bool = False) -> Target:
    """The output rows of the ids that `answers` use most; among equals the lower id comes first.

    With `chain` the embeddings too. Byte-pair ids stand in order of frequency, so low ones fill up
    what the answers leave.
    """
    from transformers import AutoConfig

    folder = resolve(model)
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    tied = bool(getattr(config, "tie_word_embeddings", False))
    with Checkpoint(folder, model) as found:
        whole = found.read(EMBEDDING if tied else "lm_head.weight")
        used = Counter(token for one in answers for token in one.ids.tolist())
        order = sorted(range(len(whole)), key=lambda token: (-used[token], token))
        ids = torch.tensor(sorted(order[:tokens]))
        rows = whole[ids].float()
        table = found.read(EMBEDDING).float() if chain else None
    files = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    base = fingerprint(folder, model, config, torch.float32)
    return Target(model, base, files, ids, rows, table)


def places(ids: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Where each id stands in the ascending ids `known`; -100 where it does not."""
    at = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    return torch.where(known[at] == ids, at, -100)


def medusa_loss(
    blocks: Blocks,
    on: Target,
    dtype: torch.dtype = torch.float32,
    soft: float | None = None,
) -> Callable[[Sequence[Answer]], tuple[torch.Tensor, int]]:
    """Loss of all guesses, summed with their weights over the tokens of some answers, in nats.

    Row i of the states is what answer token i was drawn from, so guess k learns token i + 1 + k:
    with i as t + 1 that is t + 2 + k. Terms are the tokens that guess 0 learns. Products are taken
    in `dtype`, the softmax in float32. With `soft` a guess learns, in place of the token, what the
    model said of that place, at this temperature and among the tokens that heads know.
    """
    mixed = torch.autocast(on.output.device.type, dtype, enabled=dtype != torch.float32)

    def read(one: Answer) -> list[torch.Tensor]:
        drawn = None if on.embedding is None else on.embedding[one.ids]
        states: list[torch.Tensor] = blocks(one.hidden.float(), drawn)
        return states

    def said(one: Answer) -> torch.Tensor:
        """The model's probabilities [answer, tokens] in the place of each token."""
        with torch.no_grad():
            return softmax(linear(one.hidden.float(), on.output).float() / soft, dim=-1)

    def loss(answers: Sequence[Answer]) -> tuple[torch.Tensor, int]:
        total, terms = torch.zeros(()), 0
        with mixed:
            states = [read(one) for one in answers]
            teachers = [said(one) for one in answers] if soft else []
        for depth in range(blocks.depth):
            truths = [one.ids[1 + depth :] for one in answers]
            labels = places(torch.cat(truths), on.tokens)
            known = labels >= 0
            rows = [found[depth][: len(truth)] for found, truth in zip(states, truths, strict=True)]
            with mixed:
                logits = linear(torch.cat(rows)[known], on.output)
            goal = labels[known]
            if teachers:
                goal = torch.cat([one[1 + depth :] for one in teachers])[known]
            lost = cross_entropy(logits.float(), goal, reduction="sum")
            total = total + DECAY**depth * lost
            terms = terms or int(known.sum())
        return total, terms

    return loss


def train_medusa(
    model: str,
    answers: Sequence[Answer],
    plan: Plan,
    out: Path,
    options: MedusaOptions,
    *,
    scratch: Path,
    facts: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Card:
    """Train heads on the answers whose part is 'train' and leave them in `out`, with a card.

    The tree is grown from the 'calibration' part, the card's scores are of the 'held out' one.
    Products are taken in `dtype`, weights are kept in float32. `facts` go into the card's options.
    Checkpoints lie in `scratch` until all is written.
    """
    parts = {
        part: [one for one in answers if one.part == part]
        for part in ("train", "calibration", "held out")
    }
    learned = [one for one in parts["train"] if len(one.ids) > options.depth]
    if not learned or not parts["calibration"] or not parts["held out"]:
        raise InferenceInputError(
            f"{len(answers)} answers leave {len(learned)} to learn from; answer more prompts"
        )
    on = target(model, learned, options.tokens, options.chain)
    width = on.output.shape[1]
    if (found := learned[0].hidden.shape[1]) != width:
        raise InferenceInputError(
            f"the kept states have {found} numbers and those of model {model!r} {width}; "
            "answer the prompts with this model"
        )
    blocks = Blocks(options.heads, width, options.chain, options.again)
    data = digest(learned)
    loss = medusa_loss(blocks, on, dtype, options.soft)
    progress = train(blocks, learned, loss, plan, data=data, folder=scratch)
    card = Card(
        recipe=CALLED,
        base=model,
        base_files=on.files,
        dtype="bfloat16",
        options={**asdict(options), **facts, "decay": DECAY},
        plan=plan_of(plan),
        examples=len(learned),
        data=data,
        losses=[round(one, 4) for one in progress.losses],
        tokens=progress.terms,
        files={},
    )
    card = finish(blocks, on, parts, card, out, options.nodes)
    shutil.rmtree(scratch)
    return card


def finish(
    blocks: Blocks,
    on: Target,
    parts: Mapping[str, Sequence[Answer]],
    card: Card,
    out: Path,
    nodes: int,
) -> Card:
    """Write heads with the tree that suits them, and their card with the scores they reach."""
    heads = blocks.heads(on)
    # Scores are those of the file: its numbers are bfloat16.
    cpu = torch.device("cpu")
    heads = heads.to(torch.bfloat16, cpu).to(torch.float32, cpu)
    with torch.no_grad():
        calibrated = ranks(heads, on.output, parts["calibration"], on.embedding)
        held = ranks(heads, on.output, parts["held out"], on.embedding)
    heads = replace(heads, choices=grow(calibrated.paths, nodes) or heads.choices)
    heads.save(out)
    scores = _scores(held, heads, parts)
    card = replace(card, files={WEIGHTS: sha256(out / WEIGHTS)}, scores=scores)
    card.write(out)
    return card


def _scores(
    held: Ranks, heads: MedusaHeads, parts: Mapping[str, Sequence[Answer]]
) -> dict[str, Any]:
    """Shares of right guesses on prompts that were not learned, heads beside baselines."""
    unigram, bigram = baselines(parts["train"], parts["held out"], heads.depth)
    return {
        "held_out_prompts": len(parts["held out"]),
        "held_out_tokens": held.counts,
        "right_within": {
            "heads": held.within(),
            "bigram": bigram.within(),
            "unigram": unigram.within(),
        },
        "expected_accepted": {
            str(size): round(expected(held.paths, heads.choices[:size]), 4)
            for size in (4, 8, 12, 16, 32)
            if size <= len(heads.choices)
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the whole recipe, or what is left of it."""
    given = _parser().parse_args(arguments)
    options = MedusaOptions(
        given.heads, given.tokens, chain=given.chain, again=given.again, soft=given.soft
    )
    passages = read_passages(given.documents) if given.documents else []
    prompts = seeds(passages, given.seed)[: given.prompts]
    if given.asked:
        kept = given.work / "asked.json"
        prompts += asked(given.model, given.dtype, given.asked, given.seed, kept)
        # Mixed, so that the first answers of a run that is still going are of every kind.
        random.Random(given.seed).shuffle(prompts)
    folder = given.work / "answers"
    answer(prompts, given.model, given.dtype, given.answer_tokens, folder)
    plan = Plan(
        given.steps,
        given.batch,
        lr=given.lr,
        warmup=given.steps // 10,
        seed=given.seed,
        checkpoint_every=20,
    )
    facts = {
        "prompts": len(prompts),
        "asked": given.asked,
        "documents": given.documents is not None,
        "answer_tokens": given.answer_tokens,
        "answer_dtype": given.dtype,
        "train_dtype": given.train_dtype,
    }
    train_medusa(
        given.model,
        read(folder, len(prompts)),
        plan,
        given.out,
        options,
        scratch=given.work / "checkpoints",
        facts=facts,
        dtype=getattr(torch, given.train_dtype),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inference.training.medusa")
    parser.add_argument("--out", type=Path, required=True, help="folder of the heads")
    parser.add_argument("--work", type=Path, required=True, help="folder that a kill leaves")
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--train-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--documents", type=Path, help="folder of .md and .txt passages")
    parser.add_argument("--prompts", type=int, help="only the first so many")
    parser.add_argument("--asked", type=int, default=0, help="so many more, by the model itself")
    parser.add_argument("--answer-tokens", type=int, default=160)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=2, help="answers per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heads", type=int, default=MedusaOptions().heads)
    parser.add_argument("--tokens", type=int, default=MedusaOptions().tokens)
    parser.add_argument(
        "--chain", action=argparse.BooleanOptionalAction, default=MedusaOptions().chain
    )
    parser.add_argument("--again", type=int, default=MedusaOptions().again, help="of a chain")
    parser.add_argument("--soft", type=float, help="learn the model's probabilities at this heat")
    return parser


if __name__ == "__main__":
    main()
