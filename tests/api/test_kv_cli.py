"""`ragwright generate --kv`: a smaller cache, and one-line refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

from tests.api.conftest import Ragwright
from tests.inference.tiny import checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model"), endless=True))


@pytest.fixture
def run(ragwright: Ragwright, model: str) -> Run:
    return partial(ragwright, "generate", "fox", "--model", model, "--max-tokens", "60")


def test_a_policy_shrinks_the_cache_and_is_named(run: Run) -> None:
    shrunk, whole, roomy = (
        json.loads(run("--json", *more)[1])["results"][0]
        for more in (("--kv", "streaming_llm:sinks=2,recent=6"), (), ("--kv", "full"))
    )
    assert shrunk["notes"]["kv"]["policy"] == "streaming_llm"
    assert shrunk["notes"]["kv"]["entries"] == 8
    assert shrunk["stats"]["peak_kv_bytes"] < whole["stats"]["peak_kv_bytes"] / 2
    assert (whole["text"], "kv" in whole.get("notes", {})) == (roomy["text"], False)
    assert roomy["notes"]["kv"]["lossless"] is True


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("streaming", "did you mean 'streaming_llm'?"),
        ("random:bugdet=8", "did you mean 'budget'?"),
        ("random:budget=0", "option budget='0' should be"),
    ],
)
def test_a_bad_policy_is_one_line_and_status_2(run: Run, spec: str, says: str) -> None:
    status, out, err = run("--kv", spec)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ragwright: ") and says in err
