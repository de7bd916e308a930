"""Every drafter at its limits: lengths that cannot be are refused, finding nothing is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from inference import Request, SamplingParams
from inference.errors import DrafterInputError
from inference.speculative import DRAFTERS, parse
from inference.speculative.base import MOST
from tests.inference.test_batching import opened
from tests.inference.tiny import checkpoint

LENGTHS = {
    "prompt_lookup": ("tokens",),
    "lookahead": ("decoding_length", "branch_length"),
    "medusa": ("nodes",),
    "llmcad": ("nodes", "depth"),
    "rapid": ("gamma",),
}
"""Options that bound how much is drafted."""


def test_every_drafter_of_the_table_has_a_length() -> None:
    assert LENGTHS.keys() == DRAFTERS.keys()


@pytest.mark.parametrize(
    ("name", "option", "length"),
    [
        (name, option, length)
        for name, options in LENGTHS.items()
        for option, length in product(options, (0, MOST + 1))
    ],
)
def test_a_length_of_nothing_or_above_the_limit_is_refused(
    name: str, option: str, length: int
) -> None:
    parse(f"{name}:{option}={MOST}")
    with pytest.raises(DrafterInputError) as caught:
        parse(f"{name}:{option}={length}")
    message = str(caught.value)
    assert f"{option}='{length}'" in message
    assert ("greater than or equal to" if length == 0 else f"equal to {MOST}") in message


@pytest.mark.parametrize("name", ["prompt_lookup", "lookahead"])
def test_a_search_that_finds_nothing_is_told_in_the_result(tmp_path: Path, name: str) -> None:
    """A prompt and answer in which no token comes twice hold nothing to copy."""
    drafter = parse(f"{name}:adaptive=false")
    sampling = SamplingParams(max_tokens=4)
    words = ["fox", "dog", "quick", "lazy", "river", "north", "over", "the"]
    with opened(checkpoint(tmp_path, endless=True, ascii_only=True)) as engine:
        requests = [Request(prompt=word, sampling=sampling, id=word) for word in words]
        plain = engine.generate(requests)
        once = [
            (request, output)
            for request, output in zip(requests, plain, strict=True)
            for ids in [[*engine.encode(request), *output.token_ids]]
            if len(set(ids)) == len(ids)
        ]
        assert once, "the model repeats itself after every word"
        for request, output in once:
            [found] = engine.generate([replace(request, drafter=drafter)])
            notes = found.notes["drafter"]
            assert found.token_ids == output.token_ids and found.stats.drafted == 0
            assert notes["turns"] == notes["empty"] > 0
            assert notes["fallback"] == ("plain decoding: nothing that was read was found to go on")
        request, output = once[0]
        copied = replace(request, drafter=drafter, references=(f"{request.prompt}{output.text}",))
        [found] = engine.generate([copied])
        assert found.token_ids == output.token_ids
        assert "fallback" not in found.notes["drafter"] and found.stats.accepted > 0
