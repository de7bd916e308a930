"""Calibrations: known costs are recovered, files are sound or passed over, the engine uses them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import InferenceError, InferenceInputError, Request, SamplingParams
from inference.calibration import (
    FORWARDS,
    OUTPUTS,
    PROMPTS,
    REPEATS,
    Calibration,
    Setting,
    calibrations_home,
    find_knee,
    load,
    measure_forwards,
    measure_grid,
    save,
)
from inference.engine import NativeConfig
from inference.native.calibrate import MEASUREMENTS, calibrate
from inference.native.engine import STEP_TOKENS, NativeEngine
from inference.native.setting import setting_of
from tests.inference.tiny import checkpoint

SETTING = Setting(architecture="a", dtype="float32", device="b", threads=2, torch="2")


class Clock:
    """A machine whose forward costs max(memory, compute) and whose first runs are slow."""

    def __init__(self, fixed: float, per_token: float, decode: float) -> None:
        self.fixed, self.per_token, self.decode = fixed, per_token, decode
        self.seen: set[int] = set()

    def forward(self, tokens: int) -> float:
        slow = 1.0 if tokens in self.seen else 50.0
        self.seen.add(tokens)
        return slow * max(self.fixed, self.per_token * tokens)

    def generate(self, prompt: int, output: int) -> tuple[int, float]:
        cold = 0.0 if self.seen else 60.0
        self.seen.add(0)
        first = max(self.fixed, self.per_token * prompt)
        return output, cold + first + self.decode * (output - 1)


def calibrated(setting: Setting = SETTING, fixed: float = 0.01) -> Calibration:
    clock = Clock(fixed, 1e-4, 0.02)
    return Calibration(
        setting=setting,
        forwards=tuple(measure_forwards(clock.forward).items()),
        grid=tuple((*at, took) for at, took in measure_grid(clock.generate).items()),
    )


@pytest.mark.parametrize(
    ("fixed", "knee"), [(0.0, 16), (0.0032, 32), (0.01, 128), (0.0256, 256), (1.0, 1024)]
)
def test_the_knee_of_a_known_curve(fixed: float, knee: int) -> None:
    # Up to fixed / per_token tokens a forward costs the same; beyond, each token costs its share.
    assert find_knee(measure_forwards(Clock(fixed, 1e-4, 0).forward)) == knee
    assert calibrated(fixed=fixed or 1e-9).knee == knee


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 10), min_size=7, max_size=7), st.floats(0.05, 1))
def test_the_knee_is_the_first_that_is_fast_enough(seconds: list[float], share: float) -> None:
    curve = dict(zip(FORWARDS, seconds, strict=True))
    speeds = {tokens: tokens / took for tokens, took in curve.items()}
    enough = [tokens for tokens in FORWARDS if speeds[tokens] >= share * max(speeds.values())]
    assert find_knee(curve, share) == enough[0]


def test_known_costs_are_recovered_and_the_held_out_half_predicted() -> None:
    found = calibrated()
    assert found.runtime.per_token == pytest.approx(0.02)
    assert found.runtime.prefill[16] == pytest.approx(0.01)
    assert found.runtime.prefill[1024] == pytest.approx(0.1024)
    assert found.runtime.r_squared == pytest.approx(1)
    assert (found.held_out.fitted, found.held_out.predicted) == (
        (16, 64, 256, 1024),
        (32, 128, 512),
    )
    assert found.held_out.r_squared > 0.99
    # F is flat up to 100 tokens and then rises: only 128, between 64 and 256, is off the line.
    assert found.held_out.median_error < 0.001 < found.held_out.max_error < 0.25
    straight = calibrated(fixed=1e-9)
    assert straight.held_out.max_error < 1e-6
    assert straight.runtime.seconds(100, 5) == pytest.approx(0.01 + 0.08)


def test_a_model_that_ends_early_counts_with_what_it_produced() -> None:
    def timer(prompt: int, output: int) -> tuple[int, float]:
        produced = min(output, 7)
        return produced, 0.5 + 0.1 * (produced - 1)

    grid = measure_grid(timer, prompts=(8, 16, 32))
    assert set(grid) == {(p, o) for p in (8, 16, 32) for o in (1, 4, 7)}
    assert grid[16, 7] == pytest.approx(1.1)


def test_the_median_leaves_out_what_disturbed() -> None:
    calls = iter(range(100))

    def seconds(_: int) -> float:
        return 9.0 if next(calls) % 3 == 0 else 1.0

    ticks: list[None] = []
    assert measure_forwards(seconds, (16,), 4, lambda: ticks.append(None)) == {16: 1.0}
    assert len(ticks) == 5


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_is_saved_is_loaded_for_its_setting_only(home: Path) -> None:
    assert load(SETTING) is None and not home.exists()
    path = save(calibrated())
    assert path.parent == home / "calibrations" == calibrations_home()
    assert load(SETTING) == calibrated()
    for field in Setting.model_fields:
        value = 7 if field == "threads" else "other"
        assert load(SETTING.model_copy(update={field: value})) is None
    save(calibrated(fixed=1.0))
    assert load(SETTING) == calibrated(fixed=1.0)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing is left over"


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version": lambda d: {**d, "version": 2},
    "grid": lambda d: {**d, "grid": [[16, 1, 0.5]]},
    "grid.0.2": lambda d: {**d, "grid": [[16, 1, -1.0], *d["grid"][1:]]},
    "forwards": lambda d: {**d, "forwards": []},
    "forwards.0.0": lambda d: {**d, "forwards": [[0, 1.0]]},
    "note": lambda d: {**d, "note": 1},
    "another setting": lambda d: {**d, "setting": {**d["setting"], "threads": 3}},
}


@pytest.mark.parametrize("says", [*DAMAGE, "Invalid JSON", "directory"])
def test_a_damaged_file_is_passed_over_and_named(
    home: Path, caplog: pytest.LogCaptureFixture, says: str
) -> None:
    path = save(calibrated())
    if says in DAMAGE:
        path.write_text(json.dumps(DAMAGE[says](json.loads(path.read_text()))))
    elif says == "directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(path.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        assert load(SETTING) is None
    (message,) = caplog.messages
    assert str(path) in message and "make it again" in message and "\n" not in message
    assert ("no length was measured" if says == "grid" else says) in message


def test_a_place_that_cannot_be_written_is_named(home: Path) -> None:
    home.mkdir()
    (home / "calibrations").write_text("in the way")
    with pytest.raises(InferenceError, match=r"calibrations.* cannot be written: .*RAGWRIGHT_HOME"):
        save(calibrated())


def config(folder: Path, **options: Any) -> NativeConfig:
    return NativeConfig(model=str(folder), dtype="float32", device="cpu", **options)


def test_the_engine_uses_what_was_calibrated(home: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", endless=True)
    request = Request(token_ids=list(range(40, 80)), sampling=SamplingParams(max_tokens=5))
    engine = NativeEngine.from_config(config(folder))
    assert engine._core().scheduler.budget == STEP_TOKENS == 512
    (plain,) = engine.generate([request])
    assert plain.stats.idealized_seconds is None
    found = calibrated(setting_of(engine._model()))
    engine.close()
    save(found)

    engine = NativeEngine.from_config(config(folder))
    assert engine._core().scheduler.budget == found.knee == 128
    first, again = engine.generate([request])[0], engine.generate([request])[0]
    engine.close()
    assert first.token_ids == again.token_ids == plain.token_ids
    assert again.usage.cached_tokens == 32
    assert first.stats.idealized_seconds == pytest.approx(found.runtime.seconds(40, 5))
    assert again.stats.idealized_seconds == pytest.approx(found.runtime.seconds(8, 5))

    given = NativeEngine.from_config(config(folder, step_tokens=40))
    assert given._core().scheduler.budget == 40
    given.close()
    other = NativeEngine.from_config(config(checkpoint(tmp_path / "b", "qwen2")))
    assert other._core().scheduler.budget == STEP_TOKENS
    assert other.generate([request])[0].stats.idealized_seconds is None
    other.close()


def test_what_was_never_computed_is_predicted_to_cost_nothing(home: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", endless=True)
    engine = NativeEngine.from_config(config(folder))
    save(calibrated(setting_of(engine._model())))
    engine.close()
    engine = NativeEngine.from_config(config(folder))
    (late,) = engine.generate([Request(prompt="fox", seconds=1e-9)])
    engine.close()
    assert (late.stats.forwards, late.stats.idealized_seconds) == (0, 0.0)


def test_a_setting_is_that_of_the_shape_not_of_the_weights(tmp_path: Path) -> None:
    def setting(name: str, kind: str = "llama", **options: Any) -> Setting:
        folder = checkpoint(tmp_path / name, kind, **options)
        engine = NativeEngine.from_config(config(folder))
        found = setting_of(engine._model())
        engine.close()
        return found

    one = setting("one", seed=1)
    assert setting("two", seed=2) == one
    assert setting("other", "qwen3", head_dim=8).key != one.key
    assert (one.dtype, one.threads) == ("float32", torch.get_num_threads())
    assert one.torch == torch.__version__ and one.device


def test_a_real_model_is_measured(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", endless=True, context=256)
    ticks: list[None] = []
    found = calibrate(config(folder), tick=lambda: ticks.append(None))
    assert [tokens for tokens, _ in found.forwards] == [16, 32, 64, 128]
    assert {(p, o) for p, o, _ in found.grid} == {
        (p, o) for p in (16, 32, 64, 128) for o in OUTPUTS
    }
    assert len(ticks) == 4 * (REPEATS + 1) + 4 * len(OUTPUTS) * REPEATS < MEASUREMENTS
    assert found.runtime.per_token > 0 and all(took > 0 for took in astuple(found.held_out)[2:4])
    assert Calibration.model_validate_json(found.model_dump_json()) == found
    assert PROMPTS[:4] == tuple(found.runtime.prefill)


def test_a_context_too_short_to_measure_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", context=64)
    with pytest.raises(InferenceInputError, match=r"context of 64.* needs 96"):
        calibrate(config(folder))
