"""The benchmarks' own logic: figures, traces, percentiles, peers that are missing or break."""

from __future__ import annotations

import math
import os
import random
import signal
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from tests.bench import memory, peers
from tests.bench.__main__ import main
from tests.bench.arrivals import ANSWER, PROMPT, Arrival, Replayed, percentile, replay, trace
from tests.bench.decode import TOKENS, against_process
from tests.bench.figures import against, pairs
from tests.bench.peers import ENVIRONMENT, Peer, PeerEnded
from tests.bench.texts import window
from tests.inference.tiny import checkpoint

ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["tokens"] == 0:
        sys.exit("out of tokens")
    print(json.dumps({"tokens_per_second": asked["tokens"] * len(asked["prompts"])}), flush=True)
"""


def test_ratio_is_above_one_where_ours_is_better() -> None:
    slower = against("a", "ms", "peer", [(1.0, 2.0), (1.0, 4.0), (1.0, 3.0)])
    assert (slower.value, slower.peer_value, slower.ratio, slower.n) == (1.0, 3.0, 3.0, 3)
    fewer = against("a", "tokens/s", "peer", [(1.0, 2.0)], lower_is_better=False)
    assert (fewer.ratio, fewer.spread) == (0.5, 0.0)


def test_pairs_take_turns_and_drop_the_first_of_both() -> None:
    order: list[str] = []

    def timed(name: str) -> float:
        order.append(name)
        return float(len(order))

    measured = pairs(lambda: timed("ours"), lambda: timed("peer"), 2)
    assert order == ["ours", "peer", "ours", "peer", "peer", "ours"]
    assert measured == [(3.0, 4.0), (6.0, 5.0)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_percentile_is_the_nearest_rank(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found == np.percentile(values, share * 100, method="inverted_cdf")


def test_a_trace_is_the_same_every_time_and_keeps_its_distributions() -> None:
    found = trace(4000)
    assert found == trace(4000) != trace(4000, seed=1)
    assert (found[0].at, found[-1].at) == (0.0, 1.0)
    gaps = [later.at - sooner.at for sooner, later in pairwise(found)]
    assert min(gaps) >= 0
    # An exponential distribution has its mean as its deviation, and this median.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)
    assert statistics.median(gaps) == pytest.approx(statistics.mean(gaps) * math.log(2), rel=0.1)
    for lengths, (median, _, least, most) in (
        ([one.prompt for one in found], PROMPT),
        ([one.answer for one in found], ANSWER),
    ):
        assert statistics.median(lengths) == pytest.approx(median, rel=0.1)
        assert least <= min(lengths) and max(lengths) <= most


def test_percentiles_of_a_replay() -> None:
    found = Replayed(((1.0, 3.0), (), (2.0, 7.0, 4.0)), (1.0,), 30, 6.0)
    assert (found.gap(0.5), found.gap(0.95), found.stall, found.throughput) == (3.0, 7.0, 5.0, 5.0)


def test_windows_go_round_the_end() -> None:
    assert window([1, 2, 3], 2, 5) == [3, 1, 2, 3, 1]
    assert window([1, 2, 3], 0, 2) == [1, 2]


@pytest.mark.parametrize("schedule", ["splitfuse", "prefill_first"])
def test_a_replay_times_every_answer(tmp_path: Path, schedule: str) -> None:
    folder = str(checkpoint(tmp_path / "model"))
    config = NativeConfig.model_validate(
        {"model": folder, "dtype": "float32", "schedule": schedule, "step_tokens": 16}
    )
    ours = config.open()
    ids = random.Random(0).choices(range(20, 200), k=64)
    sent = [Arrival(0.0, 20, 5), Arrival(0.5, 30, 8), Arrival(1.0, 10, 2)]
    found = replay(ours, sent, ids, 0.1)
    ours.close()
    assert len(found.first) == 3 and min(found.first) > 0
    for sent_one, gaps in zip(sent, found.gaps, strict=True):
        assert len(gaps) < sent_one.answer and min(gaps, default=0) >= 0
    assert 60 + 3 <= found.tokens <= 60 + 15
    assert found.seconds > 0.1  # the last was not sent before its time


def test_a_peer_answers_and_is_stopped_in_between() -> None:
    with Peer([sys.executable, "-c", ECHO]) as peer:
        for tokens in (3, 5):
            assert peer.tokens_per_second(["a", "b"], tokens) == 2.0 * tokens
            process = psutil.Process(peer.pid)
            deadline = time.monotonic() + 10
            while process.status() != psutil.STATUS_STOPPED:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert not psutil.pid_exists(peer.pid)


def test_a_peer_that_breaks_says_why() -> None:
    with Peer([sys.executable, "-c", ECHO]) as peer, pytest.raises(PeerEnded) as caught:
        peer.tokens_per_second(["a"], 0)
    assert "ended with status 1" in str(caught.value)
    assert "out of tokens" in str(caught.value)


def test_a_peer_that_crashes_names_the_signal() -> None:
    crash = "import os, signal; input(); os.kill(os.getpid(), signal.SIGSEGV)"
    with Peer([sys.executable, "-c", crash]) as peer, pytest.raises(PeerEnded, match="SIGSEGV"):
        peer.tokens_per_second(["a"], 1)


def test_a_peer_that_is_stuck_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE_SECONDS", 0.1)
    with Peer([sys.executable, "-c", "import time; time.sleep(600)"]) as peer:
        os.kill(peer.pid, signal.SIGSTOP)
    assert not psutil.pid_exists(peer.pid)


def test_peers_that_are_not_installed_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none"))
    monkeypatch.setenv("RAGWRIGHT_VLLM_ENV", str(tmp_path / "none"))
    assert peers.vllm() is None and peers.llamacpp() is None
    said = capsys.readouterr().err
    assert "make vllm-env" in said and "make llamacpp-env" in said


def test_without_a_peer_our_figure_stands_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = NativeConfig(model=str(checkpoint(tmp_path / "model")), dtype="float32").open()
    assert isinstance(ours, NativeEngine)
    missing = against_process("a", ours, "other", None, 2, 3)
    with Peer([sys.executable, "-c", "raise SystemExit('no such model')"]) as broken:
        failed = against_process("a", ours, "other", broken, 2, 3)
    with Peer([sys.executable, "-c", ECHO]) as works:
        measured = against_process("a", ours, "other", works, 2, 3)
    ours.close()
    assert capsys.readouterr().err.count("no such model") == 1
    for figure in (missing, failed):
        assert figure.value is not None and figure.value > 0
        assert (figure.peer, figure.peer_value, figure.ratio, figure.n) == ("other", None, None, 3)
    assert measured.peer_value == 2.0 * TOKENS and measured.ratio is not None


def test_every_row_can_be_named_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "--only", "decode_batch2"]) == 2
    assert "did you mean 'decode_batch1'" in capsys.readouterr().err
    assert main(["workflow", "--only", "superstep_bare"]) == 2
    assert "'workflow' has no option --only" in capsys.readouterr().err
    assert main(["workflow", "--drafter", "prompt_lookup"]) == 2
    assert "'workflow' has no option --drafter" in capsys.readouterr().err
    assert main(["workflow", "--tokens", "9"]) == 2
    assert "'workflow' has no option --tokens" in capsys.readouterr().err
    assert main(["speculation", "--tokens", "0"]) == 2
    assert "--tokens 0" in capsys.readouterr().err
    assert main(["engine", "--n", "0"]) == 2
    out, err = capsys.readouterr()
    assert "--n 0" in err and out == ""


def test_fields_of_the_status_file() -> None:
    text = "Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t     100 kB\nRssAnon:\t      60 kB\n"
    assert memory.status_bytes("VmHWM", text) == 2 * 2**20
    assert memory.status_bytes("RssAnon", text) == 60 * 1024
