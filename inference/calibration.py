"""What a model costs on this machine: measured once, kept in a file, used by the engine.

Two measurements. The knee is the number of tokens beyond which a larger forward gains little: the
smallest count whose tokens per second are at least 90 % of the best, because the throughput of a
forward is a concave function of its tokens (Dynamic SplitFuse, DeepSpeed FastGen, arXiv
2401.08671). The grid of prompt and output lengths gives the idealized runtime
(`inference.idealized`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference.engine import Engine
from inference.errors import InferenceError, InferenceInputError
from inference.idealized import HeldOut, IdealizedRuntime, hold_out
from inference.models import models_home
from inference.requests import Request, SamplingParams

FORWARDS = (16, 32, 64, 128, 256, 512, 1024)
"""Tokens of one forward, for the knee."""
PROMPTS = (16, 32, 64, 128, 256, 512, 1024)
OUTPUTS = (1, 4, 16, 32)
SHARE = 0.9
REPEATS = 3

Timer = Callable[[int, int], tuple[int, float]]
"""(prompt tokens, most output tokens) -> (tokens produced, seconds)."""

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Setting(BaseModel):
    """What a calibration holds for: `architecture` is the digest of a model's configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    architecture: str
    dtype: str
    device: str
    threads: int
    torch: str

    @property
    def key(self) -> str:
        """Name of the file, without its suffix."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Calibration(BaseModel):
    """Medians of the measurements, in seconds; everything else follows from them.

    `forwards` are (tokens, seconds), `grid` is (prompt tokens, output tokens, seconds).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    setting: Setting
    forwards: tuple[tuple[Count, Seconds], ...] = Field(min_length=1)
    grid: tuple[tuple[Count, Count, Seconds], ...]

    @model_validator(mode="after")
    def _can_be_fitted(self) -> Calibration:
        try:
            _ = self.runtime, self.held_out
        except InferenceInputError as error:
            raise ValueError(str(error)) from None
        return self

    @cached_property
    def knee(self) -> int:
        """Tokens of a forward that are worth their time: the engine's `step_tokens`."""
        return find_knee(dict(self.forwards))

    @cached_property
    def runtime(self) -> IdealizedRuntime:
        """The model fitted to the whole grid."""
        return IdealizedRuntime.fit({(p, o): seconds for p, o, seconds in self.grid})

    @cached_property
    def held_out(self) -> HeldOut:
        """The prediction of half of the prompt lengths from the other half."""
        return hold_out({(p, o): seconds for p, o, seconds in self.grid})

    def summary(self) -> dict[str, Any]:
        """What was found, as `ragwright models calibrate --json` prints it; seconds throughout."""
        runtime, held = self.runtime, self.held_out
        return {
            "setting": self.setting.model_dump(),
            "knee": self.knee,
            "forwards": [{"tokens": n, "seconds": took} for n, took in self.forwards],
            "prefill": [{"tokens": n, "seconds": took} for n, took in runtime.prefill.items()],
            "per_token": runtime.per_token,
            "r_squared": runtime.r_squared,
            "held_out": asdict(held),
        }


def find_knee(seconds: Mapping[int, float], share: float = SHARE) -> int:
    """The smallest token count whose tokens per second are at least `share` of the best."""
    best = max(tokens / took for tokens, took in seconds.items())
    return min(tokens for tokens, took in seconds.items() if tokens / took >= share * best)


def measure_forwards(
    seconds: Callable[[int], float],
    tokens: Iterable[int] = FORWARDS,
    repeats: int = REPEATS,
    tick: Callable[[], object] = lambda: None,
) -> dict[int, float]:
    """Tokens of a forward -> median seconds; `tick` is called after each measurement.

    Every size runs once unmeasured, because its first time pays for what later ones find ready.
    """
    taken: dict[int, list[float]] = {size: [] for size in tokens}
    for turn, size in product(range(repeats + 1), taken):
        took = seconds(size)
        if turn:
            taken[size].append(took)
        tick()
    return {size: statistics.median(times) for size, times in taken.items()}


def measure_grid(
    timer: Timer,
    prompts: Iterable[int] = PROMPTS,
    outputs: Iterable[int] = OUTPUTS,
    repeats: int = REPEATS,
    tick: Callable[[], object] = lambda: None,
) -> dict[tuple[int, int], float]:
    """(prompt, output) tokens -> median seconds.

    A model that ends earlier than asked is counted with what it produced. The repeats go round
    the whole grid, so that a machine that slows down does so for all lengths.
    """
    taken: dict[tuple[int, int], list[float]] = {}
    pairs = list(product(prompts, outputs))
    timer(*pairs[0])  # unmeasured: the first time pays for what later ones find ready
    for _, (prompt, output) in product(range(repeats), pairs):
        produced, took = timer(prompt, output)
        taken.setdefault((prompt, produced), []).append(took)
        tick()
    return {at: statistics.median(times) for at, times in taken.items()}


def engine_timer(engine: Engine, vocabulary: int, seed: int = 0) -> Timer:
    """Times greedy generations after random prompts, no two of which begin alike."""
    chance = random.Random(seed)

    def timed(prompt: int, output: int) -> tuple[int, float]:
        ids = [chance.randrange(vocabulary) for _ in range(prompt)]
        request = Request(token_ids=ids, sampling=SamplingParams(max_tokens=output))
        (done,) = engine.generate([request])
        done.raise_if_failed()
        return done.usage.completion_tokens, done.usage.seconds

    return timed


def calibrations_home() -> Path:
    """Where calibrations lie: `calibrations/` beside the models."""
    return models_home().parent / "calibrations"


def save(calibration: Calibration) -> Path:
    """Write a calibration in one rename; raises InferenceError where that cannot be done."""
    home = calibrations_home()
    path = home / f"{calibration.setting.key}.json"
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=".", suffix=".partial", dir=home)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(calibration.model_dump_json(indent=1) + "\n")
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InferenceError(
            f"calibration {path} cannot be written: {error.strerror}; free some space or set "
            "RAGWRIGHT_HOME to another place"
        ) from error
    return path


def load(setting: Setting) -> Calibration | None:
    """The stored calibration of a setting; a file that cannot be used is passed over, saying so."""
    path = calibrations_home() / f"{setting.key}.json"
    try:
        found = Calibration.model_validate_json(path.read_bytes())
        if found.setting != setting:
            raise ValueError("it was measured in another setting")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning(
            "ragwright: calibration %s is not used: %s; make it again with "
            "`ragwright models calibrate`, or delete it",
            path,
            _reason(error),
        )
        return None
    return found


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
