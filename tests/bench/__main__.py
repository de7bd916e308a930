"""`python -m tests.bench NAME`: run one benchmark and print its report as one JSON object."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from inference.errors import InferenceInputError
from tests.bench.figures import Figure


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


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; what it prints on the way goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--only", action="append", default=[], metavar="ROW")
    parser.add_argument("--n", type=int)
    parser.add_argument("--drafter", action="append", default=[], metavar="SPEC")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--resume", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="what is printed in any case")
    given = parser.parse_args(arguments)
    results, sys.stdout = sys.stdout, sys.stderr
    try:
        names = ("only", "n", "drafter", "tokens", "resume")
        options = {name: getattr(given, name) for name in names}
        figures = _figures(given.name, options)
    except InferenceInputError as error:
        print(f"ragwright: {error}", file=sys.stderr)
        return 2
    finally:
        sys.stdout = results
    report = {"bench": given.name, "machine": machine(), "figures": [f.to_dict() for f in figures]}
    json.dump(report, results)
    return 0


def _figures(name: str, given: Mapping[str, Any]) -> list[Figure]:
    """Run one benchmark with the options it has."""
    for count in ("n", "tokens"):
        value = given[count]
        if value is not None and value < 1:
            raise InferenceInputError(f"--{count} {value} measures nothing; give at least 1")
    run: Callable[..., list[Figure]] = importlib.import_module(f"tests.bench.{name}").run
    options = {key: value for key, value in given.items() if value}
    for key in options:
        if key not in signature(run).parameters:
            raise InferenceInputError(f"benchmark {name!r} has no option --{key}; leave it out")
    return run(**options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
