"""A grammar from outside cannot hang the engine: it is refused, or it is served in time."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from inference import Grammar, Request, SamplingParams
from inference.errors import GrammarInputError, GrammarTooSlow
from inference.grammar import compiler as compiler_module
from inference.grammar.compiler import WORKERS, Compiler
from inference.native.engine import NativeEngine
from tests.inference.conftest import open_engine
from tests.inference.tiny import checkpoint, tokenizer
from workflows.errors import InvalidWorkflow
from workflows.loading import load_workflow


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": 1000}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "maxItems": 1000}
    return schema


def _doubling(word: str) -> str:
    rules = "".join(f"a{i} ::= a{i + 1}{word}a{i + 1}\n" for i in range(40))
    return f'root ::= a0\n{rules}a40 ::= "x" | ""\n'


HEAVY = {
    "nested counts": lambda: Grammar.json_schema(_nested(6)),
    "many optional": lambda: Grammar.json_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}}
    ),
    "many values": lambda: Grammar.json_schema({"enum": [f"value {i}" for i in range(1500)]}),
    "quadratic counts": lambda: Grammar.json_schema(
        {
            "type": "object",
            "properties": {f"p{i}": True for i in range(80)},
            "minProperties": 40,
            "maxProperties": 50,
        }
    ),
    "huge repetition": lambda: Grammar.regex("((a{1000}){1000}){1000}"),
    "ambiguous repetition": lambda: Grammar.regex("((x+x+)+y|(x|xx)*)*"),
    "nullable loops": lambda: Grammar.regex("((a*)*b?)*"),
    "doubling rules": lambda: Grammar.ebnf(_doubling(" ")),
    "doubling choices": lambda: Grammar.ebnf(_doubling(" | ")),
    "left recursion": lambda: Grammar.ebnf('root ::= root root "a" | "a"'),
    "deep brackets": lambda: Grammar.regex("(" * 10_000 + "a" + ")" * 10_000),
    "deep rules": lambda: Grammar.ebnf("root ::= " + "(" * 10_000 + '"a"' + ")" * 10_000),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    opened = open_engine(checkpoint(tmp_path_factory.mktemp("model"), context=256))
    yield opened
    opened.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_grammar_is_refused_or_served_in_time(engine: NativeEngine, name: str) -> None:
    began = time.monotonic()
    try:
        request = Request(
            prompt="fox", grammar=HEAVY[name](), sampling=SamplingParams(max_tokens=40, seed=1)
        )
        (output,) = engine.generate([request])
        assert output.usage.completion_tokens >= 1
    except GrammarInputError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - began < 20


@pytest.mark.timeout(60)
def test_a_compilation_over_its_time_is_left_while_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = tokenizer()
    compiler = Compiler(words, len(words), [words.eos_token_id], seconds=0.3)
    compiler.compile(Grammar.regex("warm"))
    release = threading.Event()
    build = compiler._build

    def slow(grammar: Grammar) -> Any:
        if "slow" in grammar.source:
            release.wait(30)
        return build(grammar)

    monkeypatch.setattr(compiler, "_build", slow)
    try:
        with pytest.raises(GrammarTooSlow, match=r"'slow0' was not compiled within 0.3 s; use"):
            compiler.compile(Grammar.regex("slow0"))
        began = time.monotonic()
        with pytest.raises(GrammarTooSlow, match="slow0"):
            compiler.compile(Grammar.regex("slow0"))
        assert time.monotonic() - began < 0.2, "a grammar known to be slow is not waited for again"
        assert compiler.matcher(Grammar.regex("fast")).accept(words.encode("f")[0])
        for at in range(1, WORKERS):
            with pytest.raises(GrammarTooSlow):
                compiler.compile(Grammar.regex(f"slow{at}"))
        with pytest.raises(GrammarTooSlow, match="still being compiled; ask again later"):
            compiler.compile(Grammar.regex("other"))
    finally:
        release.set()
    for _ in range(100):  # what ended after all is served again
        if not compiler._running:
            break
        time.sleep(0.05)
    assert compiler.matcher(Grammar.regex("slow0")).accept(words.encode("s")[0])


def test_compiled_grammars_are_kept_within_a_byte_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_module, "CACHE_BYTES", 200_000)
    words = tokenizer()
    compiler = Compiler(words, len(words), [words.eos_token_id])
    for index in range(60):
        schema = {"enum": [f"{index} {value}" for value in range(40)]}
        compiler.compile(Grammar.json_schema(schema))
    assert 0 < compiler._opened().get_cache_size_bytes() <= 200_000


def test_a_workflow_with_a_hostile_schema_is_refused_when_loaded(tmp_path: Path) -> None:
    schema = json.dumps({"type": "string", "maxLength": 10**12})
    file = tmp_path / "w.yaml"
    file.write_text(
        "name: w\nresources: {engine: {use: native}}\nnodes:\n"
        f"  ask: {{use: generate, with: {{prompt: hi}}, grammar: {{schema: {schema}}}}}\n"
        "edges: [{from: start, to: ask}, {from: ask, to: end}]\n"
        'outputs: {answer: "${state.text}"}\n',
        encoding="utf-8",
    )
    with pytest.raises(InvalidWorkflow, match="maxLength must be from 0 to 100000"):
        load_workflow(file)
    with pytest.raises(GrammarInputError, match="64 steps"):
        Grammar.json_schema(_nested(80))
