"""Naming a cache policy in text: what is read, and what is refused on one line."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import InferenceInputError, Request
from inference.errors import KVInputError, Unsupported
from inference.kv import KV_POLICIES, Full, KVPolicy, Random, StreamingLLM, build, parse, spell
from inference.openai.calls import check
from inference.openai.server import Profile

POLICIES = st.one_of(
    st.just(Full()),
    st.builds(Random, budget=st.integers(2), recent=st.integers(1), seed=st.integers(0, 2**31 - 1)),
    st.builds(StreamingLLM, sinks=st.integers(0), recent=st.integers(1)),
)


@given(POLICIES)
def test_what_is_spelled_is_read_again(policy: KVPolicy) -> None:
    assert parse(spell(policy)) == policy
    name = spell(policy).partition(":")[0]
    assert KV_POLICIES[name] is type(policy)
    assert build({"use": name, **policy.model_dump()}) == policy


def test_options_left_out_keep_their_defaults() -> None:
    assert parse("random") == Random()
    assert parse(" streaming_llm : recent = 9 ") == StreamingLLM(sinks=4, recent=9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unknown KV policy ''; known: full, random, streaming_llm"),
        ("streming_llm", "unknown KV policy 'streming_llm'; did you mean 'streaming_llm'?"),
        ("random:budgt=3", "KV policy 'random' has no option 'budgt'; did you mean 'budget'?"),
        ("full:budget=3", "KV policy 'full' has no option 'budget'; there are none"),
        ("random:budget=1", "option budget='1' should be greater than or equal to 2"),
        ("random:budget=x", "option budget='x' should be a valid integer"),
        ("random:seed=2147483648", "option seed='2147483648' should be less than 2147483648"),
        ("random:budget", "'budget' is not OPTION=VALUE; write random:OPTION=VALUE"),
        ("random:", "is not OPTION=VALUE"),
        ("random:budget=8,", "is not OPTION=VALUE"),
        ("random:seed=1,seed=2", "gives option 'seed' twice"),
    ],
)
def test_a_fault_is_named_with_its_remedy(text: str, says: str) -> None:
    with pytest.raises(KVInputError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InferenceInputError)


def test_values_of_a_mapping_have_their_type() -> None:
    for value in ("8", 8.5, True, None):
        with pytest.raises(KVInputError, match=f"option budget={value!r} should be a valid int"):
            build({"use": "random", "budget": value})
    with pytest.raises(KVInputError, match="needs its name under 'use'"):
        build({"budget": 8})


@pytest.mark.parametrize("inner", [{"kv": StreamingLLM()}, {"skip_layers": (0, 1)}])
def test_a_server_takes_neither_policies_nor_skipped_layers(inner: dict[str, Any]) -> None:
    profile = Profile("m", 100, frozenset())
    with pytest.raises(Unsupported, match="use the native engine"):
        check(profile, "auto", Request(prompt="x", **inner), "http://127.0.0.1:1")


def test_reading_a_name_loads_no_tensor_library() -> None:
    code = (
        "import sys, inference.kv; inference.kv.parse('random'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
