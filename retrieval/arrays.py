"""Arrays on disk: .npy files written in blocks by plain writes, never through a memory map.

A full disk makes a plain write raise; a page of a memory map that cannot be written kills the
process instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def save_array(
    file: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, blocks: Iterable[npt.NDArray[Any]]
) -> None:
    """Write `blocks`, joined along the first axis, as one C-ordered .npy file of `shape`."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(
            out, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        for block in blocks:
            out.write(np.ascontiguousarray(block, dtype=dtype).tobytes())


def map_array(file: Path) -> npt.NDArray[Any]:
    """Read-only memory map of a .npy file; pickled content is refused."""
    array: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
