"""In which setting a loaded model runs: what its calibration is filed under."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from inference.calibration import Setting
from inference.native.fingerprint import architecture
from inference.native.model import Model


def setting_of(model: Model) -> Setting:
    """Shape, number type, device, threads and torch of a model."""
    return Setting(
        architecture=architecture(model.config),
        dtype=str(model.network.dtype).removeprefix("torch."),
        device=_device_name(model.device),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return _cpu_name() or platform.processor() or platform.machine()


def _cpu_name() -> str | None:
    """The processor's name where Linux tells it; Python's platform module does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)
