"""Runs that ask a person: they rest, refuse what does not answer, and go on where they were."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.workflows.conftest import adopt
from tests.workflows.replay import ReplayEngine
from workflows.answers import BadAnswer, check_answers, read_answers
from workflows.checkpoints import strict_serializer
from workflows.errors import InvalidWorkflow
from workflows.events import Asked, Event
from workflows.loading import load_workflow
from workflows.past import past_of
from workflows.resources import ResourcePool, Resources
from workflows.runs import RunOrder, resume_run, start_run
from workflows.runtime import RunOptions, RunResult, RunStatus, execute

REVIEW = """
name: review
inputs: {topic: {type: string, default: owls}}
resources: {engine: {use: native}}
nodes:
  draft: {use: generate, with: {prompt: "Write about ${inputs.topic}"}}
  approve:
    use: interrupt
    with: {ask: {text: "${state.text}", question: Publish?}, choices: [yes, no, 3]}
    save: {answer: verdict}
  publish: {use: generate, with: {prompt: "polish ${state.text}"}, save: {text: final}}
edges:
  - {from: start, to: draft}
  - {from: draft, to: approve}
  - {from: approve, when: "state.verdict == 'yes'", to: publish}
  - {from: approve, to: end}
  - {from: publish, to: end}
outputs: {verdict: "${state.verdict}", final: "${state.final}"}
"""

# Four questions wait at the same time: a map, and two in a sub-workflow beside it.
INNER = """
name: inner
nodes:
  count: {use: set, with: {values: {n: 1}}}
  left: {use: interrupt, with: {ask: left?, schema: {type: integer, minimum: 3}}, save: {answer: l}}
  right: {use: interrupt, with: {ask: right?}, save: {answer: r}}
  both: {use: set, with: {values: {sum: "${state.l + state.r}"}}}
edges:
  - {from: start, to: count}
  - {from: count, to: [left, right]}
  - {from: [left, right], to: both}
  - {from: both, to: end}
outputs: {sum: "${state.sum}"}
"""
MANY = """
name: many
nodes:
  each:
    use: interrupt
    with: {ask: "${word}?"}
    over: "${['a', 'b']}"
    item: word
    into: parts
  first: {use: set, with: {values: {n: 1}}}
  inner: {use: workflow, with: {name: inner.yaml}}
  join: {use: set, with: {values: {text: "${join(pluck(state.parts, 'answer'), '+')}"}}}
edges:
  - {from: start, to: [each, first]}
  - {from: first, to: inner}
  - {from: [each, inner], to: join}
  - {from: join, to: end}
outputs: {text: "${state.text}", sum: "${state.outputs.sum}"}
"""


class Desk:
    """One run over several attempts, each with what is in the checkpoints of the last."""

    def __init__(self, folder: Path, source: str, engine: ReplayEngine | None = None) -> None:
        file = folder / "main.yaml"
        file.write_text(source, encoding="utf-8")
        (folder / "inner.yaml").write_text(INNER, encoding="utf-8")
        self.workflow = load_workflow(file)
        self.saver = InMemorySaver(serde=strict_serializer())
        self.engine = engine
        self.events: list[Event] = []

    def go(self, answers: Mapping[str, Any] | None = None) -> RunResult:
        resources = Resources(self.workflow.spec, ResourcePool())
        adopt(resources, self.engine)
        past = past_of(event.to_dict() for event in self.events) if self.events else None
        options = RunOptions(
            "r", sinks=[self.events.append], past=past, answers=answers or {}, journalled=True
        )
        inputs = self.workflow.check_inputs({})
        return asyncio.run(execute(self.workflow, inputs, resources, options, self.saver))


def test_a_run_waits_and_goes_on_with_the_answer(tmp_path: Path) -> None:
    engine = ReplayEngine(["a draft", "final text"])
    desk = Desk(tmp_path, REVIEW, engine)
    result = desk.go()
    assert (result.status, result.error) == (RunStatus.INTERRUPTED, None)
    [ask] = result.to_dict()["asks"]
    assert ask["node"] == "approve" and ask["choices"] == ["yes", "no", 3]
    assert ask["ask"] == {"text": "a draft", "question": "Publish?"}
    assert [e.asks for e in desk.events if isinstance(e, Asked)] == [(ask,)]
    assert desk.go().asks == [ask], "without an answer it asks the same again"
    done = desk.go({ask["id"]: "yes"})
    assert (done.status, done.outputs) == (
        RunStatus.COMPLETED,
        {"verdict": "yes", "final": "final text"},
    )
    assert len(engine.requests) == 2, "nothing was generated twice"
    assert done.usage["model_calls"] == 2
    assert [step["node"] for step in done.steps] == ["draft", "approve", "publish"]
    assert not any(step.get("superseded") for step in done.steps)
    assert "asks" not in done.to_dict()


@pytest.mark.parametrize("answer", ["maybe", "", None, True, 3.5, ["yes"]])
def test_a_bad_answer_is_refused_and_the_run_waits_on(tmp_path: Path, answer: object) -> None:
    desk = Desk(tmp_path, REVIEW, ReplayEngine(["a draft"]))
    [ask] = desk.go().asks
    before = len(desk.events)
    with pytest.raises(BadAnswer, match=r'must be one of "yes", "no", 3'):
        desk.go({ask["id"]: answer})
    with pytest.raises(BadAnswer, match="nothing waits under the id 'other'"):
        desk.go({"other": "yes"})
    assert len(desk.events) == before
    assert desk.go({ask["id"]: 3}).outputs["verdict"] == 3


def test_many_questions_in_maps_and_sub_workflows_are_answered_in_any_order(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, MANY)
    asks = {ask["ask"]: ask for ask in desk.go().asks}
    assert set(asks) == {"a?", "b?", "left?", "right?"}
    assert asks["left?"]["node"] == "inner/left"
    ids = {name: ask["id"] for name, ask in asks.items()}
    with pytest.raises(BadAnswer, match=r"'inner/left' does not fit: \$: 2 is less than"):
        desk.go({ids["left?"]: 2})
    some = desk.go({ids["b?"]: "B", ids["left?"]: 4})
    assert {ask["ask"] for ask in some.asks} == {"a?", "right?"}
    stale = {ids["b?"]: "other", ids["right?"]: 5}
    assert [ask["ask"] for ask in desk.go(stale).asks] == ["a?"], "what is answered stays"
    done = desk.go({ids["a?"]: "A"})
    assert done.outputs == {"text": "A+B", "sum": 9}
    assert [s["node"] for s in done.steps].count("inner/count") == 1


def test_an_answer_is_kept_when_the_run_is_cut_behind_it(tmp_path: Path) -> None:
    class Dies(ReplayEngine):
        dead = True

        async def stream(self, request: Any) -> Any:
            if self.dead and "polish" in self.heard(request):
                raise KeyboardInterrupt
            async for chunk in super().stream(request):
                yield chunk

    engine = Dies(["a draft", "final"])
    desk = Desk(tmp_path, REVIEW, engine)
    [ask] = desk.go().asks
    with pytest.raises(KeyboardInterrupt):
        desk.go({ask["id"]: "yes"})
    engine.dead = False
    assert desk.go({ask["id"]: "yes"}).outputs == {"verdict": "yes", "final": "final"}


def test_the_folder_of_a_run_and_the_command_know_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    (tmp_path / "main.yaml").write_text(MANY, encoding="utf-8")
    (tmp_path / "inner.yaml").write_text(INNER, encoding="utf-8")

    async def whole() -> tuple[RunResult, RunResult]:
        first = await start_run(RunOrder(str(tmp_path / "main.yaml"), run_id="r"))
        ids = {ask["ask"]: ask["id"] for ask in first.asks}
        with pytest.raises(BadAnswer, match="must have the form ID=ANSWER"):
            await resume_run("r", answers=["A"])
        texts = [
            f"{ids[name]}={text}" for name, text in zip(ids, ("A", "B", "5", "6"), strict=True)
        ]
        return first, await resume_run("r", answers=texts)

    first, done = asyncio.run(whole())
    assert [ask["ask"] for ask in first.asks] == ["a?", "b?", "left?", "right?"]
    assert done.status is RunStatus.COMPLETED, done.error
    assert done.outputs == {"text": "A+B", "sum": 11}


ASKS = [{"id": "1a", "node": "n", "choices": ["5", 7, "x=y"]}]


@pytest.mark.parametrize(
    ("texts", "answers"),
    [
        (["5"], {"1a": "5"}),
        (["7"], {"1a": 7}),
        (["1a=7"], {"1a": 7}),
        (["x=y"], {"1a": "x=y"}),
        (['{"a": 1}'], {"1a": {"a": 1}}),
        (["no JSON"], {"1a": "no JSON"}),
        ([], {}),
    ],
)
def test_texts_are_read_as_answers(texts: Sequence[str], answers: Mapping[str, Any]) -> None:
    assert read_answers(ASKS, texts) == answers


@pytest.mark.parametrize("texts", [["5", "7"], ["1a=5", "1a=5"]])
def test_one_question_takes_one_answer(texts: Sequence[str]) -> None:
    with pytest.raises(BadAnswer, match="answered twice"):
        read_answers(ASKS, texts)


def test_a_schema_leads_to_no_other_host() -> None:
    ask = {"id": "a", "node": "n", "schema": {"$ref": "http://127.0.0.1:9/schema"}}
    with pytest.raises(BadAnswer, match="refers to 'http://127"):
        check_answers([ask], {"a": 1})


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ("{ask: x, schema: {type: nothing}}", "bad_option", "no JSON Schema"),
        ("{ask: x, choices: []}", "bad_option", "choices"),
        ("{choices: [a]}", "missing_option", "'ask'"),
        ("{ask: x, choice: [a]}", "unknown_option", "did you mean 'choices'"),
    ],
)
def test_bad_options_are_faults_at_their_place(
    tmp_path: Path, options: str, code: str, text: str
) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        f"name: w\nnodes:\n  n:\n    use: interrupt\n    with: {options}\n"
        "edges: [{from: start, to: n}, {from: n, to: end}]\noutputs: {a: '${state.answer}'}\n",
        encoding="utf-8",
    )
    with pytest.raises(InvalidWorkflow) as caught:
        load_workflow(file)
    [fault] = [f for f in caught.value.faults if f.code != "unknown_state"]
    assert (fault.code, fault.line) == (code, 5) and text in fault.message
