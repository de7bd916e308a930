"""A generating node with a drafter: checks at load time, and what reaches the engine."""

from __future__ import annotations

import jsonschema
import pytest

from inference import Capability
from inference.speculative import build, parse
from tests.workflows.basis import BASE, TABLES, Large, faults_of, with_key
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.checks.uploaded import check_uploaded
from workflows.errors import InvalidWorkflow
from workflows.jsonschema import workflow_schema
from workflows.source import parse_yaml
from workflows.validate import Tables


class Verifying(Large):
    """An engine that verifies drafts."""

    provides = frozenset({*Large.provides, Capability.SPECULATION})


ALL = Tables(TABLES.nodes, {**TABLES.engines, "verifying": Verifying}, TABLES.retrievers)
FINE = BASE.replace("use: small", "use: verifying")
TEXT = """\
name: w
resources: {engine: {use: native}}
nodes:
  ask: {use: generate, with: {prompt: the fox jumps}, drafter: DRAFTER}
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {answer: "${state.text}"}
"""


@pytest.mark.parametrize(
    ("drafter", "wrong"),
    [
        ("{use: rapid, mode: paper, eta: 5}", "{use: rapid, moode: paper}"),
        ("{use: prompt_lookup}", "{use: lookup}"),
        ("'rapid:gamma=3'", "{gamma: 3}"),
    ],
)
def test_each_form_is_fine_and_fits_the_published_schema(drafter: str, wrong: str) -> None:
    text = with_key("drafter", drafter, FINE)
    assert faults_of(text, ALL) == []
    published = jsonschema.Draft202012Validator(workflow_schema(ALL))
    assert list(published.iter_errors(parse_yaml(text, "f").value)) == []
    bad = with_key("drafter", wrong, FINE)
    assert list(published.iter_errors(parse_yaml(bad, "f").value)) != []


@pytest.mark.parametrize(
    ("drafter", "says"),
    [
        ("{use: ¶rapit}", "unknown drafter 'rapit'; did you mean 'rapid'?"),
        ("{use: rapid, ¶gama: 2}", "no option 'gama'; did you mean 'gamma'?"),
        ("{use: rapid, gamma: ¶0}", "option gamma=0"),
        ("¶'rapid:gamma=65'", "option gamma='65'"),
        ("¶3", "drafter must be a mapping {use: NAME, OPTION: VALUE} or a text (found: 3)"),
    ],
)
def test_a_bad_drafter_is_found_at_its_place(drafter: str, says: str) -> None:
    text = with_key("drafter", drafter, FINE)
    mark = text.index("¶")
    (fault,) = faults_of(text.replace("¶", ""), ALL)
    assert fault.code == "bad_drafter"
    assert says in fault.message
    place = (text.count("\n", 0, mark) + 1, mark - text.rfind("\n", 0, mark))
    assert (fault.line, fault.column) == place


def test_an_engine_that_verifies_nothing_is_refused() -> None:
    (fault,) = faults_of(with_key("drafter", "rapid", BASE), ALL)
    assert "needs the capability 'speculation'" in fault.message
    assert "engines that have it: verifying" in fault.message


def test_a_node_that_generates_nothing_takes_no_drafter() -> None:
    text = FINE.replace("count: {use: set,", "count: {use: set, drafter: rapid,")
    assert [fault.code for fault in faults_of(text, ALL)] == ["not_generating"]


def test_the_drafter_reaches_the_engine(run: Run) -> None:
    engine = ReplayEngine(["x"])
    engine.capabilities |= {Capability.SPECULATION}
    run(TEXT.replace("DRAFTER", "{use: rapid, gamma: 3}"), engine=engine)
    run(TEXT.replace("DRAFTER", "'rapid:mode=paper,eta=5'"), engine=engine)
    run(TEXT.replace(", drafter: DRAFTER", ""), engine=engine)
    assert [request.drafter for request in engine.requests] == [
        build({"use": "rapid", "gamma": 3}),
        parse("rapid:mode=paper,eta=5"),
        None,
    ]


@pytest.mark.parametrize(
    "drafter", ["{use: rapid, model: /etc/model}", "'rapid: model = ../other'", "rapid:model=x"]
)
def test_an_upload_names_no_model_of_this_host(drafter: str) -> None:
    with pytest.raises(InvalidWorkflow, match="names a model or file of this host"):
        check_uploaded(TEXT.replace("DRAFTER", drafter))
    check_uploaded(TEXT.replace("DRAFTER", "{use: rapid, gamma: 2}"))
