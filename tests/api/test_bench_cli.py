"""`ragwright bench`: what there is, and errors on one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psutil

from tests.api.conftest import Ragwright


def test_lists_the_benchmarks(ragwright: Ragwright) -> None:
    names = ["api", "atlas", "auto_rag", "engine", "jobs", "retrieval", "speculation", "workflow"]
    assert ragwright("bench") == (0, "".join(f"{name}\n" for name in names), "")
    status, out, _ = ragwright("bench", "--json")
    assert (status, json.loads(out)) == (0, {"benches": names})


def test_an_unknown_benchmark_or_row_is_refused(ragwright: Ragwright) -> None:
    status, _, err = ragwright("bench", "engin")
    assert status == 2 and "did you mean 'engine'?" in err
    # The benchmark's own process names the row; this one passes its exit status on.
    assert ragwright("bench", "engine", "--only", "decode_batch2", "--json")[:2] == (2, "")
    status, _, err = ragwright("bench", "engine", "--n", "0")
    assert status == 2 and "--n" in err


def test_drafters_reach_the_benchmark_that_has_them(ragwright: Ragwright) -> None:
    asked = ["bench", "speculation", "--only", "qa_batch1", "--drafter", "prompt_lokup", "--json"]
    assert ragwright(*asked)[:2] == (2, "")
    assert ragwright("bench", "workflow", "--drafter", "prompt_lookup", "--json")[:2] == (2, "")


def test_limits_and_kept_answers_reach_the_benchmark_that_has_them(ragwright: Ragwright) -> None:
    for option in (("--tokens", "9"), ("--resume", "rows.jsonl")):
        assert ragwright("bench", "workflow", *option, "--json")[:2] == (2, "")
    status, _, err = ragwright("bench", "speculation", "--tokens", "0")
    assert status == 2 and "--tokens" in err


def test_a_benchmark_ends_with_its_command() -> None:
    command = [sys.executable, "-c", "from ragwright import main; main()", "bench", "engine"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with started:
        try:
            deadline = time.monotonic() + 60
            while not (below := psutil.Process(started.pid).children(recursive=True)):
                assert started.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            started.send_signal(signal.SIGTERM)
            assert started.wait(20) == 128 + signal.SIGTERM
            assert not psutil.wait_procs(below, timeout=20)[1]
        finally:
            started.kill()
