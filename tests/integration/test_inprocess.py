"""The engine contract and more over vLLM inside a process, in the environment that holds vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference.vllm.server import interpreter
from tests.servers import require_vllm

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(1200)
@pytest.mark.default_model
def test_vllm_keeps_the_contract_inside_a_process_of_its_environment() -> None:
    require_vllm()
    python = interpreter()
    if python == Path(sys.executable):
        pytest.skip("vLLM is installed in this environment; tests/conformance runs it here")
    environment = {n: v for n, v in os.environ.items() if n != "RAGWRIGHT_VLLM_ENV"}
    # vLLM and what it imports warn about much that is not ours.
    options = ["-q", "-rfEs", "-p", "no:cacheprovider", "-W", "ignore", "-k", "vllm or inprocess"]
    files = ["tests/conformance/test_engines.py", "tests/integration/inprocess.py"]
    done = subprocess.run(
        [str(python), "-m", "pytest", *options, *files],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
