"""A server does not outlive the process that started it: real processes, killed for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference.vllm.server import watched
from tests.servers import processes, until

# Started in a thread that ends at once, because some death signals follow the thread.
PARENT = """
import subprocess, sys, threading, time
def start():
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
    print(child.pid, flush=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(300)
"""
# Ignores SIGTERM where told to, and has a worker of its own.
SERVER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else signal.SIG_DFL)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
time.sleep(300)
"""


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_a_killed_parent_takes_the_server_and_its_workers_along(
    manner: str, tmp_path: Path
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    command = watched(Path(sys.executable), folder, ["-c", SERVER, manner])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *command], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        try:
            assert until(lambda: len(processes(group)) == 3), "watcher, server and worker"
            time.sleep(0.5)
            assert len(processes(group)) == 3, "the end of the starting thread ends nothing"
            parent.kill()
            parent.wait()
            assert until(lambda: processes(group) == [])
            assert not folder.exists()
        finally:
            parent.kill()
            for pid in processes(group):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_status_of_the_server_is_passed_on(code: str, status: int, tmp_path: Path) -> None:
    command = watched(Path(sys.executable), tmp_path, ["-c", code])
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        assert watcher.wait(30) == status
    assert tmp_path.exists()
