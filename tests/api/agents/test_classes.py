"""The classes of agents against the shipped workflow files, so that they cannot drift."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
import typing

import pytest

import api
from api.agents import AGENTS, Agent, AgentOptions
from tests.house.source import ROOT
from workflows.loading import load_workflow, shipped_workflows

TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "list": list}
VERBS = ("run", "stream", "arun", "astream")

each_agent = pytest.mark.parametrize("name", AGENTS)


def test_every_shipped_workflow_has_a_class() -> None:
    assert sorted(AGENTS) == shipped_workflows()
    assert {cls.__name__ for cls in AGENTS.values()} <= set(api.__all__)


@each_agent
@pytest.mark.parametrize("verb", ["inputs", *VERBS])
def test_inputs_are_those_of_the_file(name: str, verb: str) -> None:
    specs = load_workflow(name).spec.inputs
    takes = [
        parameter
        for parameter in inspect.signature(getattr(AGENTS[name], verb)).parameters.values()
        if parameter.name != "self"
    ]
    assert [parameter.name for parameter in takes] == list(specs)
    hints = typing.get_type_hints(AGENTS[name].inputs)  # type: ignore[attr-defined]
    for position, parameter in enumerate(takes):
        spec = specs[parameter.name]
        hint = hints[parameter.name]
        default = parameter.empty if spec.required else spec.default
        if default is None:  # left out it is None, which its type then says too
            (hint,) = set(typing.get_args(hint)) - {type(None)}
        assert (typing.get_origin(hint) or hint) is TYPES[spec.type]
        assert parameter.default == default, parameter.name
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (position > 0)


@each_agent
def test_help_tells_inputs_outputs_errors_and_source(name: str) -> None:
    spec, text = load_workflow(name).spec, pydoc.plain(pydoc.render_doc(AGENTS[name]))
    assert "Source: " in text and "arXiv" in text
    assert "WorkflowInputError" in text and "raise_if_failed" in text
    for key in (*spec.inputs, *spec.outputs):
        assert f"`{key}`" in text, key
    for key, given in spec.inputs.items():
        if given.minimum is not None and given.maximum is not None:
            assert f"{given.minimum:g} to {given.maximum:g}" in text, key
    for verb in VERBS:
        assert pydoc.render_doc(getattr(AGENTS[name], verb)).count("`question`: what to answer")


def test_a_file_is_opened_with_the_options_of_the_constructor() -> None:
    takes = set(inspect.signature(Agent.__init__).parameters) - {"self"}
    assert set(AgentOptions.__annotations__) == takes


def test_the_types_are_known_to_a_checker(tmp_path: typing.Any) -> None:
    script = tmp_path / "typed.py"
    script.write_text(
        "from api import AutoRAG\nagent = AutoRAG(docs='x')\n"
        "answer: str | None = agent.run('q', max_rounds=2).answer\n"
        "agent.stream('q', max_round=2)\nagent.run(3)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    faults = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(faults) == 2, done.stdout
    assert '"max_round"' in faults[0] and 'expected "str"' in faults[1]


def test_importing_api_is_light() -> None:
    code = (
        "import sys, api; first = set(sys.modules); from api import AutoRAG; "
        "AutoRAG(docs='x'); print(*first, '|', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    bare, agent = (set(half.split()) for half in done.stdout.split("|"))
    assert bare & {"pydantic", "workflows", "inference"} == set()
    heavy = {"fastapi", "redis", "torch", "langgraph", "transformers", "faiss", "opentelemetry.sdk"}
    assert agent & heavy == set()


def test_the_package_says_what_it_offers() -> None:
    assert set(api.__all__) <= set(dir(api))
    for name in api.__all__:
        assert inspect.getdoc(getattr(api, name))
    with pytest.raises(AttributeError, match="AutoRga"):
        api.AutoRga  # type: ignore[attr-defined]  # noqa: B018
