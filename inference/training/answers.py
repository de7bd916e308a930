"""Self-distilled data: a model answers prompts, and its final hidden states are kept with them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from inference.engine import NativeConfig
from inference.errors import InferenceInputError
from inference.native.engine import NativeEngine
from inference.requests import Message, Request, SamplingParams
from inference.taps import Choice, Tapped, Taps
from inference.training.seeds import Seed

ROWS = 32
"""Prompts that are answered together."""

SHARD = 64
"""Prompts per file, which is what a kill sets back."""

WARM = 0.3
"""Temperature of every second prompt; the others are answered greedily."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of prompt and answer, and the states the language model head read.

    `hidden` [answer, hidden], float16, are those at the last prompt token and at all
    answer tokens but the last: row i is what answer token i was drawn from.
    """

    prompt: str
    ids: torch.Tensor
    """[answer], int64"""
    hidden: torch.Tensor

    @property
    def part(self) -> str:
        """'train', 'held out' or 'calibration': 8, 1 and 1 of 10 prompts, by their digest."""
        last = hashlib.sha256(self.prompt.encode()).digest()[-1] % 10
        return {0: "held out", 1: "calibration"}.get(last, "train")


def answer(seeds: Sequence[Seed], model: str, dtype: str, tokens: int, folder: Path) -> None:
    """Let `model` answer each prompt in at most `tokens` tokens, into shards in `folder`.

    Shards that are there already are kept, so that a killed run goes on. Even prompts are answered
    greedily, odd ones at temperature 0.3 with their number as seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _same(folder, model, dtype, tokens)
    starts = [at for at in range(0, len(seeds), SHARD) if not _answered(folder, at, seeds)]
    if not starts:
        return
    config = NativeConfig.model_validate({"model": model, "dtype": dtype, "step_rows": ROWS})
    engine = NativeEngine.from_config(config)
    try:
        for start in tqdm(starts, disable=None, unit="shard", desc="answering"):
            part = seeds[start : start + SHARD]
            watched = [_Watched() for _ in part]
            requests = [
                _request(one, start + at, tokens, watch)
                for at, (one, watch) in enumerate(zip(part, watched, strict=True))
            ]
            outputs = engine.generate(requests)
            tensors: dict[str, torch.Tensor] = {}
            for at, (output, watch) in enumerate(zip(outputs, watched, strict=True)):
                output.raise_if_failed()
                ids = torch.tensor(output.token_ids, dtype=torch.int64)
                tensors[f"{at}.ids"] = ids
                tensors[f"{at}.hidden"] = watch.rows(len(ids))
            scratch = folder / f".partial-{os.getpid()}"
            prompts = json.dumps([one.text for one in part])
            save_file(tensors, scratch, {"prompts": prompts})
            scratch.rename(_shard(folder, start))
    finally:
        engine.close()


def read(folder: Path, prompts: int) -> list[Answer]:
    """The answers to the first `prompts` prompts, in order; those of no token are left out."""
    found: list[Answer] = []
    for start in range(0, prompts, SHARD):
        path = _shard(folder, start)
        texts = _prompts(path)
        tensors = load_file(path)
        found += [
            Answer(text, tensors[f"{at}.ids"], tensors[f"{at}.hidden"])
            for at, text in enumerate(texts)
            if len(tensors[f"{at}.ids"])
        ]
    return found


def digest(answers: Sequence[Answer]) -> str:
    """Hex sha256 of prompts and answer tokens in their order; states follow from these."""
    state = hashlib.sha256()
    for one in answers:
        state.update(f"{one.prompt!r} {one.ids.tolist()}\n".encode())
    return state.hexdigest()


@dataclass(slots=True)
class _Watched:
    """Final states of a request as its steps show them; of a prompt only the last is kept."""

    states: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, seen: Tapped | Choice) -> None:
        assert isinstance(seen, Tapped)
        (state,) = seen.hidden.values()
        self.states.append(state[-1:].half())

    def rows(self, count: int) -> torch.Tensor:
        """The last `count` states: a long prompt is read in several steps, one token follows."""
        return torch.cat(self.states[len(self.states) - count :]).clone()


def _request(seed: Seed, number: int, tokens: int, watch: _Watched) -> Request:
    sampling = SamplingParams(
        max_tokens=tokens, temperature=WARM if number % 2 else 0.0, seed=number
    )
    message = Message(role="user", content=seed.text)
    return Request(messages=[message], sampling=sampling, taps=Taps(watch, hidden=(-1,)))


def _shard(folder: Path, start: int) -> Path:
    return folder / f"shard-{start:06d}.safetensors"


def _answered(folder: Path, start: int, seeds: Sequence[Seed]) -> bool:
    """Whether the shard that begins at prompt `start` is there; an error if it is of others."""
    path = _shard(folder, start)
    if not path.exists():
        return False
    if _prompts(path) != [one.text for one in seeds[start : start + SHARD]]:
        raise InferenceInputError(
            f"shard {str(path)!r} answers other prompts; take another folder, or delete this one"
        )
    return True


def _prompts(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as found:
            prompts: list[str] = json.loads(found.metadata()["prompts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InferenceInputError(
            f"shard {str(path)!r} cannot be read ({error}); delete it and run again"
        ) from error
    return prompts


def _same(folder: Path, model: str, dtype: str, tokens: int) -> None:
    """Write how the shards are made, or refuse shards that were made otherwise."""
    facts = {"model": model, "dtype": dtype, "tokens": tokens}
    path = folder / "answers.json"
    if path.exists():
        if (found := json.loads(path.read_text(encoding="utf-8"))) != facts:
            raise InferenceInputError(
                f"the answers in {str(folder)!r} were made with {found}, not {facts}; "
                "take another folder, or delete this one"
            )
        return
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
