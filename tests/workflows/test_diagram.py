"""The mermaid flowchart, read back by a small reader of the part of mermaid that it uses."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.diagram import MAX_LABEL, mermaid
from workflows.loading import load_workflow, shipped_workflows
from workflows.schema import END, START, WorkflowSpec

NODE = re.compile(r'  (\w+)(?:\(\["([^"]*)"\]\)|\["([^"]*)"\]|\[\["([^"]*)"\]\]|\{\{"([^"]*)"\}\})')
EDGE = re.compile(r'  (\w+) -->(?:\|"([^"]*)"\|)? (\w+)')
SAFE = re.compile(r"(?:[^\"<>`#;&|\\\n]|#\d+;|<br/>)*")


def read(chart: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Nodes (id -> label) and edges (from, label, to) of a chart; every line must be one."""
    lines = chart.splitlines()
    assert lines[0] == "flowchart TD"
    nodes: dict[str, str] = {}
    edges: list[tuple[str, str, str]] = []
    for line in lines[1:]:
        if edge := EDGE.fullmatch(line):
            assert SAFE.fullmatch(edge[2] or "")
            edges.append((edge[1], plain(edge[2] or ""), edge[3]))
        else:
            node = NODE.fullmatch(line)
            assert node, line
            label = next(group for group in node.groups()[1:] if group is not None)
            assert SAFE.fullmatch(label)
            assert node[1] not in nodes
            nodes[node[1]] = label
    return nodes, edges


def plain(label: str) -> str:
    """What mermaid shows: #NUMBER; is the character of that number."""
    return html.unescape(re.sub(r"#(\d+);", r"&#\1;", label))


def spec(*edges: dict[str, object], nodes: str = "abc") -> WorkflowSpec:
    return WorkflowSpec.model_validate(
        {
            "name": "w",
            "nodes": {name: {"use": "set", "with": {"values": {"x": 1}}} for name in nodes},
            "edges": list(edges),
            "outputs": {"x": "${state.x}"},
        }
    )


@pytest.mark.parametrize("name", shipped_workflows())
def test_the_chart_has_every_node_and_edge_of_a_shipped_workflow(name: str) -> None:
    workflow = load_workflow(name).spec
    nodes, edges = read(mermaid(workflow))
    names = {key: label.split("<br/>")[0] for key, label in nodes.items()}
    assert sorted(names.values()) == sorted([START, END, *workflow.nodes])
    drawn = {(names[a], b, names[c]) for a, b, c in edges if "…" not in b}
    conditional = {edge.source for edge in workflow.edges if edge.when}
    for edge in workflow.edges:
        assert isinstance(edge.source, str)
        assert isinstance(edge.target, str)
        label = edge.when or ("else" if edge.source in conditional else "")
        if len(label) <= MAX_LABEL:
            assert (edge.source, label, edge.target) in drawn
    assert len(edges) == len(workflow.edges)


# Python's html.unescape, by which the chart is read here, drops noncharacters, which are of Cn.
@given(st.text(st.characters(exclude_categories=("Cc", "Cn", "Cs")), max_size=MAX_LABEL))
def test_any_condition_is_shown_as_it_is(when: str) -> None:
    chart = mermaid(spec({"from": "a", "to": "b", "when": when}))
    [(_, label, _)] = read(chart)[1]
    assert label == " ".join(when.split())


def test_a_long_condition_is_cut() -> None:
    chart = mermaid(spec({"from": "a", "to": "b", "when": "x" * 500}))
    [(_, label, _)] = read(chart)[1]
    assert len(label) == MAX_LABEL
    assert label.endswith("…")


def test_fan_out_draws_an_edge_each_and_a_join_waits_in_one_place() -> None:
    chart = mermaid(spec({"from": "start", "to": ["a", "b"]}, {"from": ["a", "b"], "to": "c"}))
    nodes, edges = read(chart)
    names = {key: label.split("<br/>")[0] for key, label in nodes.items()}
    assert {(names[a], names[c]) for a, _, c in edges} == {
        ("start", "a"),
        ("start", "b"),
        ("a", "all of"),
        ("b", "all of"),
        ("all of", "c"),
    }


def test_a_parallel_map_says_what_it_runs_over(tmp_path: Path) -> None:
    workflow = spec({"from": "start", "to": "a"}, nodes="a").model_dump(by_alias=True)
    workflow["nodes"]["a"] |= {"over": "${state.list}", "item": "one", "into": "all"}
    nodes, _ = read(mermaid(WorkflowSpec.model_validate(workflow)))
    assert "a<br/>set<br/>each one of ${state.list}" in nodes.values()
