"""`ragwright generate --schema | --regex | --ebnf`: constrained answers and one-line refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jsonschema
import pytest

from tests.api.conftest import Ragwright
from tests.inference.tiny import checkpoint

Run = Callable[..., tuple[int, str, str]]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture
def run(ragwright: Ragwright, model: str) -> Run:
    return partial(ragwright, "generate", "fox", "--model", model, "--max-tokens", "60")


def test_each_option_constrains_the_answer(run: Run, tmp_path: Path) -> None:
    schema, rules = tmp_path / "schema.json", tmp_path / "rules.ebnf"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8")
    rules.write_text('root ::= ("north" | "south") "!"\n', encoding="utf-8")
    status, out, _ = run("--schema", schema, "--json")
    (result,) = json.loads(out)["results"]
    assert status == 0
    jsonschema.validate(json.loads(result["text"]), SCHEMA)
    assert result["notes"]["grammar"] == {"kind": "json_schema", "complete": True}
    assert run("--ebnf", rules)[1] in ("north!\n", "south!\n")
    assert re.fullmatch("[a-c]{4}\n", run("--regex", "[a-c]{4}", "--temperature", "2")[1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ('{"type": "array", "uniqueItems": true}', "schema at uniqueItems: "),
        ('{"$ref": "#"}', "needs itself forever"),
        ("", "empty"),
    ],
)
def test_a_bad_schema_file_is_named_on_one_line(
    run: Run, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "schema.json"
    file.write_text(text, encoding="utf-8")
    status, out, err = run("--schema", file)
    assert (status, out) == (2, "")
    assert err.startswith(f"ragwright: {file}: ")
    assert says in err
    assert err.count("\n") == 1


def test_other_bad_input_is_refused(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    for arguments, says in (
        (("--schema", missing), "cannot be read"),
        (("--regex", "(ab"), "parenthesis is not closed"),
        (("--regex", "a", "--ebnf", missing), "--regex and --ebnf exclude each other"),
        (("--regex", "a", "--stop", "b"), "leave out stop"),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1
