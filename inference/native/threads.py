"""OpenMP workers: a thread that waits for the step loop gives its own back.

Every thread that runs a parallel operation of torch gets workers of its own. Once all of them
together are more than the cores, GNU OpenMP stops letting them spin between operations, and each
operation waits for a wake-up: measured on two cores, a small product takes 190 us instead of 110.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

SOFT = 1
"""omp_pause_soft of OpenMP 5.0: what is set stays set, workers go and come back when needed."""


def release_workers() -> None:
    """End the OpenMP workers of the calling thread; its next parallel operation gets others."""
    library = _openmp()
    if library is not None:
        library.omp_pause_resource_all(SOFT)


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """The OpenMP library torch has loaded, or None where it has another or an older one."""
    beside = Path(torch.__file__).parent / "lib"
    for path in sorted(beside.glob("libgomp*")):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            return library
    return None
