"""`python -m tests.bench NAME`: run one benchmark and print its report as one JSON object."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, memory, versions."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(name: str) -> None:
    """Run the benchmark; what it prints on the way goes to standard error."""
    results, sys.stdout = sys.stdout, sys.stderr
    figures = importlib.import_module(f"tests.bench.{name}").run()
    report = {"bench": name, "machine": machine(), "figures": [f.to_dict() for f in figures]}
    json.dump(report, results)


if __name__ == "__main__":
    main(sys.argv[1])
