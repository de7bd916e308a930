"""Progress bars of libraries, shown on a terminal and nowhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def bars_only_on_terminal() -> Iterator[None]:
    """Silence the progress bars of transformers unless standard error is a terminal."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        # The GGUF reader draws a plain tqdm bar that listens to no switch.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.enable_progress_bar()
