"""In which setting a loaded model runs: what its calibration is filed under."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import torch

from inference.calibration import Setting
from inference.native.model import Model

VOLATILE = ("transformers_version", "dtype", "torch_dtype")
"""Keys of a configuration that say nothing about the shape of the model."""


def setting_of(model: Model) -> Setting:
    """Shape, number type, device, threads and torch of a model."""
    facts = model.config.to_dict()
    shape = {k: v for k, v in facts.items() if k not in VOLATILE and not k.startswith("_")}
    text = json.dumps(shape, sort_keys=True, default=str)
    return Setting(
        architecture=hashlib.sha256(text.encode()).hexdigest()[:32],
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
