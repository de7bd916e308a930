"""Peak memory of a process that loads the model and answers, against what shapes add up to.

Each measurement is a process of its own (`python -m tests.bench.memory`). Resident memory is that
of Linux: before the engine is opened `VmRSS`, then the high-water mark `VmHWM`, set back through
`clear_refs`. Pages of the checkpoint's file that are mapped count as resident, although the system
may take them back at any time; so the peak of anonymous memory (`RssAnon`), sampled, stands beside
it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.bench import ROOT
from tests.bench.figures import Figure, against

ROWS = 16
PROMPT, ANSWER = 960, 64
"""1,024 tokens each; the first answer ends after the last prompt was read."""
SAMPLE_SECONDS = 0.005
STATUS = Path("/proc/self/status")
PEER = "weights and key/value entries from shapes"


def peak_memory(n: int) -> list[Figure]:
    """Growth of resident memory over the bytes of weights and of all tokens' entries."""
    if not STATUS.is_file():
        print("not measured: peak_memory needs Linux's /proc", file=sys.stderr)
        return [
            Figure("peak_memory", None, "MiB", PEER),
            Figure("peak_memory_anonymous", None, "MiB", PEER),
        ]
    command = [sys.executable, "-m", "tests.bench.memory"]
    runs: list[dict[str, float]] = []
    for _ in range(n):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        runs.append({name: size / 2**20 for name, size in json.loads(done.stdout).items()})
    return [
        against("peak_memory", "MiB", PEER, [(r["resident"], r["computed"]) for r in runs]),
        against(
            "peak_memory_anonymous", "MiB", PEER, [(r["anonymous"], r["computed"]) for r in runs]
        ),
    ]


def status_bytes(name: str, text: str | None = None) -> int:
    """A field of /proc/self/status, or of `text`, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", text or STATUS.read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024


def measure() -> dict[str, int]:
    """Growth of resident and of anonymous memory in this process, and the computed bytes."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from inference import Request, SamplingParams
    from inference.engine import NativeConfig
    from inference.native.engine import NativeEngine
    from tests.bench.texts import corpus_ids, window

    imported: tuple[Any, ...] = (torch, AutoConfig, AutoTokenizer, GenerationConfig)
    assert all((*imported, LlamaRotaryEmbedding))
    ids = corpus_ids()
    resident, anonymous = status_bytes("VmRSS"), status_bytes("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")
    with _Highest("RssAnon") as highest:
        engine = NativeConfig(dtype="bfloat16", prefix_cache_bytes=0, step_tokens=512).open()
        assert isinstance(engine, NativeEngine)
        sampling = SamplingParams(max_tokens=ANSWER)
        prompts = [window(ids, at * 1009, PROMPT) for at in range(ROWS)]
        outputs = engine.generate([Request(token_ids=p, sampling=sampling) for p in prompts])
    peak = status_bytes("VmHWM")
    held = sum(o.usage.prompt_tokens + o.usage.completion_tokens for o in outputs)
    network, store = engine._model().network, engine._core().runner.store
    computed = network.weight_bytes + held * store.token_bytes
    engine.close()
    return {
        "resident": peak - resident,
        "anonymous": highest.value - anonymous,
        "computed": computed,
    }


class _Highest:
    """The highest value of a field of /proc/self/status while it is entered."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.value = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.value = max(self.value, status_bytes(self._name))


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
