"""vLLM's real server does not outlive a process that is killed without a chance to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.inference.tiny import checkpoint
from tests.servers import processes, require_vllm, until

ROOT = Path(__file__).resolve().parents[2]

STARTER = """
import sys
from pathlib import Path
from inference.engine import VLLMConfig
from inference.vllm.server import Server
Server(VLLMConfig(startup_seconds=300), Path(sys.argv[1]))
"""


@pytest.mark.timeout(400)
def test_the_real_server_too_is_gone_when_its_parent_is_killed(tmp_path: Path) -> None:
    require_vllm()
    model = checkpoint(tmp_path)
    with subprocess.Popen([sys.executable, "-c", STARTER, str(model)], cwd=ROOT) as parent:
        assert until(lambda: bool(family(parent.pid)))
        group = family(parent.pid)[0].pid
        try:
            assert until(lambda: any(map(is_worker, family(parent.pid))), 200)
            left = [process.pid for process in family(parent.pid)]
            assert len(left) >= 3, "watcher, server and worker"
            parent.kill()
            parent.wait()
            assert until(lambda: not any(map(psutil.pid_exists, left))), left
        finally:
            parent.kill()
            for pid in processes(group):
                os.kill(pid, signal.SIGKILL)


def family(pid: int) -> list[psutil.Process]:
    """Descendants, the nearest first."""
    return psutil.Process(pid).children(recursive=True)


def is_worker(process: psutil.Process) -> bool:
    """True for the process in which vLLM's server loads the model, by the title it gives itself."""
    with suppress(psutil.NoSuchProcess):
        return "EngineCore" in " ".join(process.cmdline())
    return False
