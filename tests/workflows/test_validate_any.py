"""Whatever is done to a valid file, validation gives a workflow or faults with places."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.workflows.basis import BASE, TABLES
from workflows.errors import InvalidWorkflow
from workflows.source import parse_yaml
from workflows.validate import validate

pieces = st.sampled_from(
    ["{", "}", "[", "]", ":", "- ", "\n", "  ", '"', "'", "${", "#", "&a", "*a", "!t", "\x00"]
)
tokens = st.sampled_from(
    ["null", "true", "-1", "1e9", "start", "end", "use", "with", "from", "to", "when", "state"]
)


@given(
    st.lists(st.tuples(st.integers(0, len(BASE)), st.integers(0, 12), pieces | tokens), max_size=4)
)
def test_any_change_of_a_file_is_valid_or_has_faults_with_places(
    edits: list[tuple[int, int, str]],
) -> None:
    text = BASE
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    check_total(text)


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "${", "start"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["use", "with", "from", "a", "$"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@given(st.data(), values)
def test_any_value_at_any_place_is_valid_or_a_fault(data: st.DataObject, value: Any) -> None:
    root = parse_yaml(BASE, "f").value
    path = data.draw(st.sampled_from([place for place in places(root) if place]))
    target = root
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    check_total(json.dumps(root))


def check_total(text: str) -> None:
    """Validation gives a workflow or faults with places and one-line messages, nothing else."""
    try:
        validate(parse_yaml(text, "f.yaml"), TABLES)
    except InvalidWorkflow as error:
        assert error.faults
        lines = text.count("\n") + 2
        for fault in error.faults:
            assert 1 <= fault.line <= lines
            assert fault.column >= 1
            assert fault.message
            assert "\n" not in fault.message
