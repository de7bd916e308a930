"""Thresholds of ATLAS for one model: quantiles over tokens that it writes behind held-out texts.

The paper gives no theta and a tau_p for models of 3 billion parameters. Deviation: the tokens are
the model's own greedy continuations of the texts, which is what the trigger will see, and not the
texts themselves.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.atlas import Form, MlagConfig, is_content, mlag
from inference import InferenceInputError, Request, SamplingParams
from inference.calibration import calibrations_home
from inference.watched import Watch, Watched

SHIPPED = Path(__file__).with_name("calibrated")
"""Thresholds that come along, of the models that do."""
PROMPT_TOKENS = 64
GATE_RATE = 0.5


class AtlasCalibration(BaseModel):
    """tau_p and theta for the model of `base_digest`, under one form and window.

    `rate` is the share of `tokens` content tokens that triggered, as asked for; `gate_rate` the
    share whose probability is under tau_p.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    model: str
    base_digest: str
    form: Form
    window: int = Field(ge=2)
    max_probability: float = Field(ge=0)
    threshold: float = Field(ge=0)
    rate: float = Field(gt=0, lt=1)
    gate_rate: float = Field(gt=0, le=1)
    tokens: int = Field(ge=1)
    texts: int = Field(ge=1)


def thresholds(
    found: Sequence[tuple[float, float]], rate: float, gate_rate: float = GATE_RATE
) -> tuple[float, float]:
    """(tau_p, theta) from (probability, MLAG) of content tokens, for a share of triggers.

    tau_p is the `gate_rate` quantile of the probabilities; theta the quantile of MLAG, those that
    do not pass the gate counted as 0. Raises InferenceInputError where the rates cannot be met.
    """
    if not 0 < rate < gate_rate <= 1:
        raise InferenceInputError(
            f"rate={rate} and gate_rate={gate_rate} must be over 0, the first under the second, "
            "and none over 1"
        )
    if len(found) * rate < 1:
        raise InferenceInputError(
            f"{len(found)} content tokens are too few for rate={rate}; give more documents"
        )
    values = np.array(found, np.float64)
    gate = float(np.quantile(values[:, 0], gate_rate))
    passed = np.where(values[:, 0] < gate, values[:, 1], 0.0)
    return gate, float(np.quantile(passed, 1 - rate))


def calibrate(
    engine: Any,
    texts: Sequence[str],
    *,
    rate: float = 0.05,
    form: Form = "lookahead",
    window: int = 32,
    tick: Callable[[], object] = lambda: None,
) -> AtlasCalibration:
    """Watch one greedy segment behind the first 64 tokens of each text.

    `tick` is called after each. Raises InferenceInputError for texts that are too few.
    """
    config = MlagConfig(1.0, 0.0, form, window)
    found: list[tuple[float, float]] = []
    for text in texts:
        head = engine.encode(Request(prompt=text))[:PROMPT_TOKENS]
        sampling = SamplingParams(max_tokens=window)
        watch = Watch(engine, Request(token_ids=head, sampling=sampling), (), None)
        [output] = engine.generate([watch.request])
        found += measured(watch.result(output), config)
        tick()
    gate, theta = thresholds(found, rate)
    return AtlasCalibration(
        model=engine.model,
        base_digest=engine.weights_digest,
        form=form,
        window=window,
        max_probability=gate,
        threshold=theta,
        rate=rate,
        gate_rate=GATE_RATE,
        tokens=len(found),
        texts=len(texts),
    )


def measured(seen: Watched, config: MlagConfig) -> list[tuple[float, float]]:
    """(probability, MLAG) of the content tokens of a watched generation that have later rows."""
    return [
        (float(seen.probabilities[at - seen.start]), mlag(seen, at, config))
        for at in range(seen.start, len(seen.ids) - 2)
        if is_content(seen.pieces[at])
    ]


def place(digest: str, form: Form, window: int) -> Path:
    """Where a calibration of this machine is kept."""
    return calibrations_home() / "atlas" / f"{digest}-{form}-{window}.json"


def save(calibration: AtlasCalibration, path: Path | None = None) -> Path:
    """Write a calibration in one rename, by default where `find` looks."""
    path = path or place(calibration.base_digest, calibration.form, calibration.window)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(calibration.model_dump_json(indent=1) + "\n")
    Path(scratch).replace(path)
    return path


def find(model: str, digest: str, form: Form, window: int) -> AtlasCalibration:
    """The calibration for exactly these weights: the one made here, else the shipped one.

    Raises InferenceInputError, naming the remedy, where there is none.
    """
    made = place(digest, form, window)
    path = made if made.is_file() else SHIPPED / made.name
    if path.is_file():
        try:
            return AtlasCalibration.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise InferenceInputError(
                f"{path} holds no calibration of ATLAS ({error.error_count()} faults); delete it "
                "and calibrate again"
            ) from None
    raise InferenceInputError(
        f"model {model!r} has no ATLAS thresholds for form {form!r} and window {window}; make them "
        f"with ragwright models calibrate {model} --atlas DOCS --form {form} --window {window}, or "
        "give max_probability and threshold"
    )
