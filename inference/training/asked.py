"""Prompts that a model writes itself: it is given the start of a user's turn and goes on.

Source: Magpie (arXiv 2406.08464), section 2.1. A model that was tuned on dialogues has seen what
users ask, and draws from that where its template opens their turn. So its heads are trained on
questions of the kind that it was made for, which no list of templates covers. Deviation: what is
kept is ended by the model itself, has some words and was not asked before; Magpie's filters by
quality, with other models, are left out, since heads learn from the answer to any question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from inference.engine import NativeConfig
from inference.errors import InferenceError, InferenceInputError
from inference.models import resolve
from inference.native.engine import NativeEngine
from inference.requests import FinishReason, Output, Request, SamplingParams
from inference.training.seeds import Seed

ROWS = 64
"""Prompts that are drawn together, which is what a kill sets back."""

LONGEST, FEWEST = 96, 4
"""Most tokens and fewest words of a prompt."""

TEMPERATURE = 0.9
SPARE = 4
"""Draws for each prompt that is wanted, before the model counts as one that asks nothing."""

MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
KIND = "asked"


def asked(model: str, dtype: str, count: int, seed: int, path: Path) -> list[Seed]:
    """`count` distinct prompts that `model` draws, kept in `path` as they come.

    Draw n has the seed of its number behind `seed`, so that a killed run goes on to the same end.
    Raises InferenceInputError if `path` holds draws of something else, InferenceError where the
    model does not ask enough.
    """
    facts = {"model": model, "dtype": dtype, "seed": seed}
    facts |= {"temperature": TEMPERATURE, "longest": LONGEST, "fewest": FEWEST}
    draws = _kept(path, facts)
    if len(_different(draws)) < count:
        opening = _opening(model)
        config = NativeConfig.model_validate({"model": model, "dtype": dtype, "step_rows": ROWS})
        engine = NativeEngine.from_config(config)
        try:
            _ask(engine, opening, count, path, facts, draws)
        finally:
            engine.close()
    return [Seed(KIND, text) for text in _different(draws)[:count]]


def _ask(
    engine: NativeEngine,
    opening: str,
    count: int,
    path: Path,
    facts: Mapping[str, Any],
    draws: list[str],
) -> None:
    """Draw on, into `draws` and the file, until there are `count` different ones."""
    with tqdm(total=count, disable=None, unit="prompt", desc="asking") as bar:
        while (found := len(_different(draws))) < count:
            bar.update(found - bar.n)
            if len(draws) >= SPARE * count + ROWS:
                raise InferenceError(
                    f"model {facts['model']!r} asked {found} different questions in {len(draws)} "
                    f"draws, and {count} were wanted; ask for fewer"
                )
            draws += _drawn(engine, opening, int(facts["seed"]), len(draws))
            _keep(path, facts, draws)


def _drawn(engine: NativeEngine, opening: str, seed: int, first: int) -> list[str]:
    """The next ROWS draws, empty where one is no prompt."""
    requests = [
        Request(
            prompt=opening,
            sampling=SamplingParams(
                max_tokens=LONGEST, temperature=TEMPERATURE, seed=(seed << 32) + first + at
            ),
        )
        for at in range(ROWS)
    ]
    return [_text(output) for output in engine.generate(requests)]


def _text(output: Output) -> str:
    output.raise_if_failed()
    text = output.text.strip()
    ended = output.finish_reason is FinishReason.STOP
    return text if ended and len(text.split()) >= FEWEST else ""


def _different(draws: Sequence[str]) -> list[str]:
    """What was asked, each once, in its order."""
    return [text for text in dict.fromkeys(draws) if text]


def _opening(model: str) -> str:
    """What the chat template puts before a user's words."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(model), local_files_only=True)
    if not tokenizer.chat_template:
        raise InferenceInputError(
            f"model {model!r} has no chat template, so no user asks it anything; leave --asked out"
        )
    turn = [{"role": "user", "content": MARK}]
    whole: str = tokenizer.apply_chat_template(turn, tokenize=False)
    return whole.partition(MARK)[0]


def _kept(path: Path, facts: Mapping[str, Any]) -> list[str]:
    if not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    if (found := stored["facts"]) != facts:
        raise InferenceInputError(
            f"the prompts in {str(path)!r} were drawn with {found}, not {facts}; "
            "take another folder, or delete this file"
        )
    draws: list[str] = stored["draws"]
    return draws


def _keep(path: Path, facts: Mapping[str, Any], draws: list[str]) -> None:
    """Replace the file as a whole, so that a kill tears nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    whole = json.dumps({"facts": dict(facts), "draws": draws}, indent=0, ensure_ascii=False)
    scratch.write_text(whole, encoding="utf-8")
    scratch.rename(path)
