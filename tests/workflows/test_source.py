"""YAML reading: what an emitter wrote comes back, scalars follow the standard, places are right."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from workflows.errors import InvalidWorkflow, WorkflowInputError
from workflows.operators import MAX_INTEGER
from workflows.source import MAX_BYTES, parse_yaml, read_source


def faults(text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(InvalidWorkflow) as caught:
        parse_yaml(text, "f.yaml")
    return [(fault.line, fault.column, fault.code) for fault in caught.value.faults]


# Lone surrogates and characters that YAML forbids cannot stand in a file.
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp")))
data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(words, data, min_size=1, max_size=4))
def test_json_is_read_as_json(value: dict[str, Any]) -> None:
    assert parse_yaml(json.dumps(value, ensure_ascii=False, indent=1), "f").value == value


@given(st.dictionaries(words, data, min_size=1, max_size=4))
def test_block_style_as_an_emitter_writes_it_is_read_back(value: dict[str, Any]) -> None:
    emitter = YAML(typ="safe", pure=True)
    emitter.default_flow_style, emitter.width = False, 10_000
    stream = io.StringIO()
    emitter.dump(value, stream)
    text = stream.getvalue()
    assume(not any(sign in text for sign in ("&", "? ", "!!")))
    assert parse_yaml(text, "f").value == value


@given(st.dictionaries(words.filter(lambda w: w.isalpha() and w.isascii()), data, min_size=1))
def test_every_key_and_value_has_its_place(value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    tree = parse_yaml(text, "f")
    lines = text.split("\n")
    for key in value:
        mark = tree.mark((key,), key=True)
        assert lines[mark.line - 1][mark.column - 1 :].startswith(f'"{key}"')
        place = tree.mark((key,))
        first = json.dumps(value[key], ensure_ascii=False, indent=1).split("\n")[0]
        assert lines[place.line - 1][place.column - 1 :].startswith(first)


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("", None),
        ("Null", None),
        ("12", 12),
        ("-3", -3),
        ("+4", 4),
        ("0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1.", 1.0),
        ("2001-01-01", "2001-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("1٣", "1٣"),
    ],
)
def test_scalars_follow_the_core_schema(scalar: str, value: Any) -> None:
    found = parse_yaml(f"a: {scalar}", "f").value["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\nb: *x", [(1, 4, "anchor"), (2, 4, "alias")]),
        ("a: 1\n<<: {b: 1}", [(2, 1, "merge")]),
        ("a: !!int 3\nb: !x y", [(1, 4, "tag"), (2, 4, "tag")]),
        ("a: 1\nb: 2\na: 3", [(3, 1, "duplicate_key")]),
        ("a: {b: 1, 'b': 2}", [(1, 11, "duplicate_key")]),
        ("1: a\ntrue: b\nnull: c", [(1, 1, "key"), (2, 1, "key"), (3, 1, "key")]),
        ("? [a]\n: b\nc: d", [(1, 3, "key")]),
        ("? {a: {b: c}}\n: {d: e}\nf: g", [(1, 3, "key")]),
        ("a: .inf\nb: .nan\nc: 1e999", [(1, 4, "number"), (2, 4, "number"), (3, 4, "number")]),
        ("a: 010", [(1, 4, "number")]),
        ("a: " + "9" * 5000, [(1, 4, "number")]),
        ("a: 9223372036854775808", [(1, 4, "number")]),
        ("a: 1\n---\nb: 1", [(2, 1, "documents")]),
        ("%YAML 1.1\n---\na: 1", [(2, 1, "directive")]),
        ("", [(1, 1, "empty")]),
        (" \n\n", [(1, 1, "empty")]),
        ("# only a comment", [(1, 17, "empty")]),
        ("null", [(1, 5, "empty")]),
        ("a: 1\nb: \x07", [(2, 4, "control_character")]),
        ("a: \x9b31m", [(1, 4, "control_character")]),
        ('a: "\\ud800"', [(1, 4, "character")]),
        ("a: [1, 2", [(1, 9, "yaml")]),
        ("a: b: c", [(1, 5, "yaml")]),
        ("a: 'b", [(1, 6, "yaml")]),
        ("a: 1\n b: 2", [(2, 3, "yaml")]),
        ("a: 1\n\tb: 2", [(2, 1, "yaml")]),
        ("a: @b", [(1, 4, "yaml")]),
    ],
)
def test_what_a_workflow_file_may_not_hold(text: str, expected: list[Any]) -> None:
    assert faults(text) == expected


def test_a_bomb_of_aliases_is_refused_without_being_built() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    codes = {code for _, _, code in faults("\n".join(lines))}
    assert codes == {"anchor", "alias"}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 50_000, "- " * 100_000, "? " * 100_000, "a:\n" + " - " * 30]
)
def test_deep_nesting_is_refused_before_it_is_built(text: str) -> None:
    assert [code for _, _, code in faults(text)][-1] == "too_deep"


def test_the_number_of_values_and_the_length_are_limited() -> None:
    assert faults("[" + "1," * 30_000 + "]")[0][2] == "too_many"
    assert faults("a: " + "x" * MAX_BYTES) == [(1, 1, "too_large")]


def test_faults_found_before_a_syntax_error_are_kept() -> None:
    assert [code for _, _, code in faults("a: 1\na: 2\nb: [")] == ["duplicate_key", "yaml"]


@pytest.mark.parametrize(
    ("raw", "place", "code"),
    [
        (b"a: 1\nb: \xff", (2, 4), "not_utf8"),
        ("a: é".encode("utf-16"), (1, 1), "not_utf8"),
        (b"x" * (MAX_BYTES + 1), (1, 1), "too_large"),
    ],
)
def test_files_that_are_not_text(
    tmp_path: Path, raw: bytes, place: tuple[int, int], code: str
) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(raw)
    with pytest.raises(InvalidWorkflow) as caught:
        read_source(file)
    [fault] = caught.value.faults
    assert ((fault.line, fault.column), fault.code) == (place, code)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1")
    assert parse_yaml(read_source(file), str(file)).value == {"a": 1}


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(WorkflowInputError, match=str(path)):
            read_source(path)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@#?, \n\t1.0<", max_size=40))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        tree = parse_yaml(text, "f")
    except InvalidWorkflow as error:
        assert error.faults
        assert all(fault.line >= 1 and fault.column >= 1 for fault in error.faults)
    else:
        json.dumps(tree.value, allow_nan=False)
