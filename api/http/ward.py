"""The command line in a child process that ends when its parent does, SIGKILL included.

Standard input is a pipe to which the parent writes nothing; it closes when the parent is gone.
(The kernel's death signal would come when the starting thread ends, and on Linux alone.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL."""


def main() -> None:
    """Run `ragwright` with the arguments of this process."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=follow, args=(pipe,), daemon=True).start()
    from api.cli import main as run

    sys.argv[0] = "ragwright"
    run()


def follow(pipe: int) -> None:
    """Wait until the pipe closes, then end this process."""
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)
