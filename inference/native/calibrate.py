"""Measures a model under the native engine, as the engine will then run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from inference.calibration import (
    FORWARDS,
    OUTPUTS,
    PROMPTS,
    REPEATS,
    Calibration,
    engine_timer,
    find_knee,
    measure_forwards,
    measure_grid,
)
from inference.engine import NativeConfig
from inference.errors import InferenceInputError
from inference.native.engine import NativeEngine
from inference.native.setting import setting_of

MEASUREMENTS = len(FORWARDS) * (REPEATS + 1) + len(PROMPTS) * len(OUTPUTS) * REPEATS
"""Calls of `tick` in a calibration of a model whose context is long enough for all lengths."""


def calibrate(config: NativeConfig, tick: Callable[[], object] = lambda: None) -> Calibration:
    """Open the engine, measure its knee, open it again with that, and measure the grid.

    A prompt of the first part is one forward, and one of the second is cut as it will be later.
    """
    plain = config.model_copy(update={"prefix_cache_bytes": 0, "step_tokens": max(FORWARDS)})
    with closing(NativeEngine.from_config(plain)) as engine:
        room = engine.context_length - max(OUTPUTS)
        prompts = [length for length in PROMPTS if length <= room]
        if len(prompts) < 3:
            raise InferenceInputError(
                f"model {config.model!r} has a context of {engine.context_length}, and a "
                f"calibration needs {PROMPTS[2] + max(OUTPUTS)}; choose a model of a longer context"
            )
        time_once = engine_timer(engine, engine._model().vocabulary)
        forwards = measure_forwards(
            lambda tokens: time_once(tokens, 1)[1],
            [tokens for tokens in FORWARDS if tokens < engine.context_length],
            tick=tick,
        )
    cut = plain.model_copy(update={"step_tokens": find_knee(forwards)})
    with closing(NativeEngine.from_config(cut)) as engine:
        model = engine._model()
        grid = measure_grid(engine_timer(engine, model.vocabulary), prompts, tick=tick)
        return Calibration(
            setting=setting_of(model),
            forwards=tuple(forwards.items()),
            grid=tuple((p, o, seconds) for (p, o), seconds in grid.items()),
        )
