"""What a kept prefix saves, what a grammar costs, and how well a cost is predicted."""

from __future__ import annotations

import json
from collections.abc import Callable

from inference import Grammar, Request, SamplingParams
from inference.calibration import OUTPUTS, PROMPTS, engine_timer, measure_grid
from inference.engine import NativeConfig
from inference.idealized import IdealizedRuntime, hold_out
from inference.models import load_tokenizer
from inference.native.engine import NativeEngine
from inference.native.threads import release_workers
from tests.bench.figures import Figure, against, pairs
from tests.bench.texts import TEXT, corpus_ids, window

CONTEXT = 2000
ANSWER = 96
SCHEMA = {
    "type": "object",
    "properties": {
        "ship": {"type": "string"},
        "year": {"type": "integer"},
        "cargo": {"type": "array", "items": {"type": "string"}, "minItems": 6, "maxItems": 12},
        "remarks": {"type": "string"},
    },
    "required": ["ship", "year", "cargo", "remarks"],
    "additionalProperties": False,
}


def prefix_reuse(n: int) -> Figure:
    """Prefill seconds of a second question over the same context, against recomputing it."""
    engine = NativeConfig(dtype="bfloat16").open()
    assert isinstance(engine, NativeEngine)
    ids, encode = corpus_ids(), load_tokenizer("default").encode
    questions = [encode(f"\n\n{text}").ids for text in ("Who built it?", "When was it finished?")]
    measured = []
    for turn in range(n + 1):
        engine.forget_prefixes()
        release_workers()
        context = window(ids, turn * 4001, CONTEXT)
        first, second = (
            engine.generate(
                [Request(token_ids=context + question, sampling=SamplingParams(max_tokens=1))]
            )[0]
            for question in questions
        )
        assert second.usage.cached_tokens > 0.9 * first.usage.prompt_tokens
        measured.append((second.stats.prefill_seconds * 1e3, first.stats.prefill_seconds * 1e3))
    engine.close()
    return against("prefix_reuse", "ms", "recomputing", measured[1:])  # the first is not measured


def grammar_overhead(engine: NativeEngine, n: int) -> Figure:
    """Time per token after the first, with a JSON schema and without; the two answers differ."""
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    prompt = f"{TEXT}\nThe entry of one ship as JSON:\n"

    def timed(grammar: Grammar | None) -> Callable[[], float]:
        def once() -> float:
            sampling = SamplingParams(max_tokens=ANSWER)
            release_workers()
            request = Request(prompt=prompt, sampling=sampling, grammar=grammar)
            (output,) = engine.generate([request])
            output.raise_if_failed()
            tokens = output.usage.completion_tokens
            assert tokens > ANSWER // 3, "the answer is too short to be timed"
            spent = output.stats.seconds - output.stats.prefill_seconds
            return spent / (tokens - 1) * 1e3

        return once

    measured = pairs(timed(grammar), timed(None), n)
    return against("grammar_overhead", "ms/token", "same request without grammar", measured)


def idealized(engine: NativeEngine, n: int) -> list[Figure]:
    """Fit of the idealized runtime, and its error on every other prompt length."""
    repeats = min(n, 3)
    vocabulary = engine._model().vocabulary
    grid = measure_grid(engine_timer(engine, vocabulary), PROMPTS, OUTPUTS, repeats)
    whole, held = IdealizedRuntime.fit(grid), hold_out(grid)
    predicted = sum(prompt in held.predicted for prompt, _ in grid)
    return [
        Figure("idealized_per_token", whole.per_token * 1e3, "ms", n=len(grid)),
        Figure("idealized_r_squared", whole.r_squared, "", n=len(grid)),
        Figure("idealized_r_squared_held_out", held.r_squared, "", n=predicted),
        Figure("idealized_error_held_out", held.median_error, "share", n=predicted),
    ]
