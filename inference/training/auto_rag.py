"""Training Auto-RAG's adapter, and the reader's, on traces whose facts are all invented.

    python -m inference.training.auto_rag auto_rag --prompts agents/prompts/auto_rag.yaml \
        --documents data/corpus --never data/questions.jsonl --out ADAPTER

Source: Auto-RAG (arXiv 2411.19443), section 3.3: next-token loss on the assistant's turns of whole
dialogues. Deviations: LoRA on a small model instead of full fine-tuning of Llama-3-8B, fewer
traces. Learning rate, batch size and epochs of the paper are not known; these are our own.

A killed run goes on at its last checkpoint when it is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from inference.errors import InferenceInputError
from inference.models import resolve
from inference.native.fingerprint import fingerprint
from inference.requests import Message
from inference.training.base import Base as Model
from inference.training.base import open_base
from inference.training.card import Card
from inference.training.examples import IGNORED, Example
from inference.training.hops import build
from inference.training.loop import Plan
from inference.training.lora import LoraOptions, train_lora
from inference.training.seeds import Passage, read_passages
from inference.training.stories import of_base, of_prose, written
from inference.training.traces import Dialogue, Manner, read, tell

RECIPES = ("auto_rag", "reader")
HOPS = (1, 1, 2, 2, 2, 3, 3)
"""How often a trace has so many hops."""
PROSE = 0.5
"""Share of the traces that are told over prose."""
BASES = 6
"""Knowledge bases that traces are drawn from, all of split 'train'."""
OVERLAP = 8
"""Words in a row that a training question may not share with an evaluation question."""

SENTENCE = re.compile(r"\S.*?[.!?](?=\s|$)", re.DOTALL)


def dialogues(
    recipe: str,
    prompts: Mapping[str, Any],
    count: int,
    seed: int,
    prose: Sequence[Passage] = (),
    *,
    more: bool = False,
    share: float = PROSE,
    manner: Manner | None = None,
) -> list[Dialogue]:
    """`count` dialogues of a recipe; passages of `prose` are shown beside, and answer nothing.

    `share` of them are told of stories, with `more` of all stories. `manner` is that of Auto-RAG's.
    """
    manner = manner or Manner()
    draw = random.Random(f"{recipe} {seed}")
    bases = [build(seed * BASES + number, "train", 120) for number in range(BASES)]
    asked = {
        (number, hops): [one for one in base.questions if len(one.facts) == hops]
        for number, base in enumerate(bases)
        for hops in HOPS
    }
    stories = of_prose(written(more), prose, hard=manner.hard_prose)
    found = []
    for _ in range(count):
        how = manner
        if draw.random() < share:
            story, how = draw.choice(stories), manner.in_prose()
        else:
            number, hops = draw.randrange(BASES), draw.choice(HOPS)
            question = draw.choice(asked[number, hops])
            story = of_base(bases[number], question, draw, hard=manner.hard)
        reads = recipe == "reader"
        found.append(read(story, prompts, draw) if reads else tell(story, prompts, draw, how))
    return found


def encode(messages: Sequence[Message], tokenizer: Any) -> Example:
    """A dialogue in the model's chat template; only what the assistant writes carries loss."""
    plain = [{"role": one.role, "content": one.content} for one in messages]
    ids: list[int] = []
    labels: list[int] = []
    for place, one in enumerate(plain):
        if one["role"] != "assistant":
            continue
        before = _rendered(tokenizer, plain[:place], True)
        after = _rendered(tokenizer, plain[: place + 1], False)
        if after[: len(before)] != before or before[: len(ids)] != ids:
            raise InferenceInputError(
                "the chat template of this model rewrites earlier turns, so that a dialogue is not "
                "the sum of its turns; train with a model whose template only appends"
            )
        labels += [IGNORED] * (len(before) - len(labels)) + after[len(before) :]
        ids = after
    return Example(tuple(ids), tuple(labels))


def _rendered(tokenizer: Any, messages: list[dict[str, str]], go_on: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=go_on)
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def overlapping(training: Iterable[str], evaluation: Iterable[str]) -> list[str]:
    """Training questions that equal an evaluation question or share OVERLAP words in a row."""
    known: set[tuple[str, ...]] = set()
    for text in evaluation:
        known.update(_runs(text))
    return sorted({text for text in training if any(run in known for run in _runs(text))})


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = tuple(re.findall(r"\w+", text.casefold()))
    for start in range(max(1, len(words) - OVERLAP + 1)):
        yield words[start : start + OVERLAP]


def evaluation(files: Iterable[Path]) -> tuple[list[str], set[str]]:
    """Questions of evaluation sets, and the ids of the documents that support them."""
    rows = [
        json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [row["question"] for row in rows], {
        name for row in rows for name in row.get("supporting", ())
    }


def prose_of(folder: Path, without: set[str]) -> list[Passage]:
    """The beginnings of the documents of `folder`, less those in `without`, by path below it."""
    left = {
        Passage(one.title, one.text)
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).as_posix() in without
        for one in [_titled(path)]
        if one is not None
    }
    return [
        Passage(one.title, " ".join(SENTENCE.findall(one.text)[:2]).strip())
        for one in read_passages(folder)
        if one not in left
    ]


def _titled(path: Path) -> Passage | None:
    if path.suffix not in {".md", ".txt"}:
        return None
    title, _, text = path.read_text(encoding="utf-8").strip().partition("\n")
    return Passage(title.lstrip("# ").strip(), text.strip())


def train_adapter(
    recipe: str,
    model: Model,
    told: Sequence[Dialogue],
    plan: Plan,
    out: Path,
    *,
    options: LoraOptions,
    facts: Mapping[str, Any],
    start: Path | None = None,
) -> Card:
    """Train on dialogues and leave a bfloat16 adapter in `out`; its card names the base's digest.

    `facts` go into the card's options; `start` is an adapter to go on from.
    """
    examples = [encode(one.messages, model.tokenizer) for one in told]
    base = fingerprint(resolve(model.name), model.name, model.network.config, torch.float32)
    return train_lora(
        model,
        examples,
        plan,
        out,
        recipe=recipe,
        options=options,
        facts={**facts, "base_digest": base},
        start=start,
        stored=torch.bfloat16,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a recipe, or what is left of it."""
    given = _given(arguments)
    prompts = YAML(typ="safe", pure=True).load(given.prompts.read_text(encoding="utf-8"))
    asked, supporting = evaluation(given.never)
    prose = prose_of(given.documents, supporting) if given.documents else []
    more = given.more_stories
    manner = _manner(given)
    told = dialogues(
        given.recipe,
        prompts,
        given.examples,
        given.seed,
        prose,
        more=more,
        share=given.prose,
        manner=manner,
    )
    if shared := overlapping((one.question for one in told), asked):
        raise InferenceInputError(
            f"training question {shared[0]!r} shares {OVERLAP} words with an evaluation question; "
            "change its wording, for what is evaluated on is never trained on"
        )
    steps = max(2, round(given.examples * given.epochs / given.batch))
    plan = Plan(
        steps,
        accumulate=given.batch,
        lr=given.lr,
        schedule="linear",
        warmup=max(1, steps // 20),
        seed=given.seed,
        checkpoint_every=10,
    )
    facts = {
        "hops": dict(Counter(one.hops for one in told)),
        "endings": dict(Counter(one.ending for one in told)),
        "rounds_without_use": sum(one.misses for one in told),
        "found_together": sum(one.joined for one in told),
        "prose_passages": len(prose),
        "more_stories": more,
        "prose": given.prose,
        **asdict(manner),
        "evaluation_questions_kept_out": len(asked),
    }
    train_adapter(
        given.recipe,
        open_base(given.model, given.dtype, given.device),
        told,
        plan,
        given.out,
        options=LoraOptions(given.rank, 2 * given.rank),
        facts=facts,
        start=given.start,
    )


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m inference.training.auto_rag")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--prompts", type=Path, required=True, help="YAML the method prompts with")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--documents", type=Path, help="folder of prose to show beside")
    parser.add_argument("--never", type=Path, action="append", default=[], help="evaluation set")
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--examples", type=int, default=440)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=4, help="dialogues per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more-stories", action="store_true", help="those of stories/more too")
    parser.add_argument("--prose", type=_share, default=PROSE, help="share told over prose")
    parser.add_argument(
        "--parametric", type=_share, default=Manner().parametric, help="share ending in memory"
    )
    parser.add_argument("--parametric-prose", type=_share, help="share of those told over prose")
    parser.add_argument(
        "--missed-prose", type=_share, help="share of steps over prose that are missed once first"
    )
    parser.add_argument("--lost", choices=["last", "any", "base"], default=Manner().lost)
    parser.add_argument(
        "--hard-negatives",
        action="store_true",
        help="look-alikes over the base: what a search finds",
    )
    parser.add_argument("--hard-prose", action="store_true", help="the same over prose")
    parser.add_argument("--start", type=Path, help="adapter to go on from")
    return parser.parse_args(arguments)


def _manner(given: argparse.Namespace) -> Manner:
    return Manner(
        parametric=given.parametric,
        lost=given.lost,
        hard=given.hard_negatives,
        hard_prose=given.hard_prose,
        parametric_prose=given.parametric_prose,
        missed_prose=given.missed_prose,
    )


def _share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; give a number from 0 to 1")
    return value


if __name__ == "__main__":
    main()
