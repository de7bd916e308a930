"""Runs a server until it ends or whoever started it is gone: `watch.py FOLDER COMMAND...`.

Standard input is a pipe that nobody writes to. It closes when the process at its other end ends,
in whatever way, SIGKILL included; then the process group of this script, whose leader it is, ends
too, and FOLDER, the server's own, is removed. The script is run by file name with the interpreter
of the server and imports nothing but the standard library. (A death signal from the kernel would
come when the starting *thread* ends.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading

PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def main(folder: str, command: list[str]) -> int:
    """Exit status of the command, as a shell gives it."""
    # A handler, not SIG_IGN: the command would inherit that. The group's SIGTERM is for it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    orphaned = threading.Event()
    follower = threading.Thread(target=follow, args=(child, folder, orphaned), daemon=True)
    follower.start()
    status = child.wait()
    if orphaned.is_set():
        follower.join()
    return status if status >= 0 else 128 - status


def follow(child: subprocess.Popen[bytes], folder: str, orphaned: threading.Event) -> None:
    """Wait until the pipe closes, then end the group, this process last."""
    while os.read(0, 1):
        pass
    orphaned.set()
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
