"""vLLM's OpenAI server as a child: started on loopback, watched until healthy, ended with us.

It runs under `watch.py`, which ends it when this process is gone, however that went.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from inference.engine import VLLMConfig
from inference.errors import InferenceInputError, ServerTimeout, ServerUnavailable

ENVIRONMENT = "RAGWRIGHT_VLLM_ENV"
PROJECT = Path(__file__).resolve().parents[2]
WATCH = Path(__file__).with_name("watch.py")

GRAMMARS = {"backend": "xgrammar", "disable_any_whitespace": True}
"""How vLLM is to hold an answer to a grammar: like the native engine, without blanks in JSON."""


def importable() -> bool:
    """True if vLLM is to run in this process: it is installed here, and no environment is named."""
    return not os.environ.get(ENVIRONMENT) and find_spec("vllm") is not None


def interpreter() -> Path:
    """Python of the environment that holds vLLM; this process's own where vLLM is installed in it.

    Raises InferenceInputError, with the way to make one, where there is none.
    """
    if importable():
        return Path(sys.executable)
    folder = Path(os.environ.get(ENVIRONMENT) or PROJECT / ".venv-vllm")
    python = folder.expanduser().absolute() / "bin" / "python"
    packages = folder.expanduser().glob("lib/python3*/site-packages/vllm/__init__.py")
    if not python.is_file() or not any(packages):
        raise InferenceInputError(
            f"no environment with vLLM at {folder}; make one with `make vllm-env`, or name one "
            f"in {ENVIRONMENT}"
        )
    return python


class Server:
    """A running server; `url` ends in /v1, and only who knows `key` may use it."""

    def __init__(self, config: VLLMConfig, folder: Path) -> None:
        python = interpreter()
        self._ended = False
        self.key = secrets.token_urlsafe(24)
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._home = tempfile.TemporaryDirectory(prefix="ragwright-vllm-")
        self._log = Path(self._home.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                watched(python, Path(self._home.name), _arguments(config, folder, self._port)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._home.name,
                env=_environment(config, self.key),
                start_new_session=True,
            )
        atexit.register(self.close)
        try:
            self._wait(config.startup_seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of what watches the server, which is also that of their process group."""
        return self._process.pid

    def _wait(self, seconds: float) -> None:
        opener = build_opener(ProxyHandler({}))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerUnavailable(
                    f"vLLM's server ended with status {self._process.returncode} while it "
                    f"started: {self._last_words()}"
                )
            with (
                contextlib.suppress(OSError),  # refused, or not ready: both are OSErrors
                opener.open(f"http://127.0.0.1:{self._port}/health", timeout=5) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.2)
        raise ServerTimeout(
            f"vLLM's server did not answer within {seconds:g} s: {self._last_words()}; raise "
            "startup_seconds"
        )

    def _last_words(self) -> str:
        """The last error in the log with what explains it, or the last line."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            return "it wrote nothing"
        at = max((at for at, line in enumerate(lines) if "Error: " in line), default=-1)
        told = lines[at : at + 2] if at >= 0 else lines[-1:]  # pydantic's errors take two lines
        return " ".join(line[:400] for line in told)

    def close(self) -> None:
        """End the server and its workers; harmless when repeated."""
        atexit.unregister(self.close)
        if self._ended:
            return
        self._ended = True
        for kind, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, kind)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        assert self._process.stdin is not None, "it was started with a pipe"
        self._process.stdin.close()
        self._home.cleanup()


def watched(python: Path, folder: Path, arguments: Sequence[str]) -> list[str]:
    """Command that runs `python` with the arguments while its standard input stays open."""
    return [str(python), "-I", str(WATCH), str(folder), str(python), *arguments]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _arguments(config: VLLMConfig, folder: Path, port: int) -> Sequence[str]:
    length = [] if config.context_length is None else [f"--max-model-len={config.context_length}"]
    return [
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={folder}",
        f"--served-model-name={config.model}",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--dtype={config.dtype}",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
        f"--structured-outputs-config={json.dumps(GRAMMARS)}",
        *length,
    ]


def _environment(config: VLLMConfig, key: str) -> dict[str, str]:
    """This process's environment, less what would change the server, plus what it needs."""
    ours = ("PYTHON", "VLLM_", "RAGWRIGHT_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    threads = {} if config.threads is None else {"OMP_NUM_THREADS": str(config.threads)}
    return {
        **kept,
        **threads,
        "VLLM_API_KEY": key,
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
