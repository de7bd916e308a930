"""Compiled workflows: order, branches, loops, maps, joins, retries, budgets, events."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from inference import Budget, Usage
from inference.errors import PromptTooLong
from tests.workflows.conftest import Run, adopt
from tests.workflows.replay import ReplayEngine
from workflows.errors import InvalidWorkflow
from workflows.events import (
    Event,
    ModelCalled,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    TextDelta,
    TokensProduced,
)
from workflows.loading import load_workflow
from workflows.resources import ResourcePool, Resources
from workflows.runtime import RunOptions, RunStatus, stream

COUNT = """
name: count
inputs: {to: {type: integer, default: 3}}
state: {n: 0}
nodes:
  add: {use: set, with: {values: {n: "${state.n + 1}"}}}
edges:
  - {from: start, to: add}
  - {from: add, when: "state.n < inputs.to", to: add}
  - {from: add, to: end}
outputs: {n: "${state.n}"}
"""

ASK = """
name: ask
resources: {engine: {use: native}}
nodes:
  one: {use: generate, with: {prompt: first question}, save: {text: one}}
  two: {use: generate, with: {prompt: "second after ${state.one}"}}
edges:
  - {from: start, to: one}
  - {from: one, to: two}
  - {from: two, to: end}
outputs: {one: "${state.one}", two: "${state.text}"}
"""


def test_a_loop_runs_until_its_condition_fails(run: Run) -> None:
    result = run(COUNT, {"to": 5})
    assert result.status is RunStatus.COMPLETED
    assert result.outputs == {"n": 5}
    assert [step["node"] for step in result.steps] == ["add"] * 5
    assert len({step["task"] for step in result.steps}) == 5


def test_a_loop_that_does_not_end_is_stopped_with_what_it_has(run: Run) -> None:
    result = run(COUNT.replace("state: {n: 0}", "state: {n: 0}\nlimits: {steps: 7}"), {"to": 100})
    assert result.status is RunStatus.FAILED
    assert result.error is not None and result.error["code"] == "step_limit"
    assert result.outputs["n"] == 6


@pytest.mark.parametrize(("x", "kind"), [(-2, "negative"), (0, "zero"), (9, "positive")])
def test_the_first_edge_that_holds_is_taken(run: Run, x: int, kind: str) -> None:
    source = """
name: branch
inputs: {x: {type: integer}}
nodes:
  look: {use: set, with: {values: {x: "${inputs.x}"}}}
  neg: {use: set, with: {values: {kind: negative}}}
  zero: {use: set, with: {values: {kind: zero}}}
  pos: {use: set, with: {values: {kind: positive}}}
edges:
  - {from: start, to: look}
  - {from: look, when: "state.x < 0", to: neg}
  - {from: look, when: "state.x == 0", to: zero}
  - {from: look, to: pos}
  - {from: neg, to: end}
  - {from: zero, to: end}
  - {from: pos, to: end}
outputs: {kind: "${state.kind}"}
"""
    assert run(source, {"x": x}).outputs == {"kind": kind}


def test_no_edge_that_holds_is_an_error_naming_node_and_conditions(run: Run) -> None:
    source = COUNT.replace(
        "  - {from: add, to: end}\n", '  - {from: add, when: "state.n > 9", to: end}\n'
    )
    result = run(source, {"to": 2})
    assert result.status is RunStatus.FAILED and result.error is not None
    assert result.error["code"] == "no_edge"
    assert "'add'" in result.error["message"] and "state.n > 9" in result.error["message"]


MAP = """
name: squares
inputs: {numbers: {type: list}}
nodes:
  square:
    use: set
    with: {values: {square: "${number * number}"}}
    over: "${inputs.numbers}"
    item: number
    into: squares
    max_parallel: 2
  total: {use: set, with: {values: {total: "${sum(pluck(state.squares, 'square'))}"}}}
edges:
  - {from: start, to: square}
  - {from: square, to: total}
  - {from: total, to: end}
outputs: {squares: "${pluck(state.squares, 'square')}", total: "${state.total}"}
"""


@pytest.mark.parametrize("numbers", [[], [3], [5, 1, 4, 1, 5, 9, 2, 6]])
def test_a_map_joins_its_results_in_order(run: Run, numbers: list[int]) -> None:
    result = run(MAP, {"numbers": numbers})
    assert result.error is None
    assert result.outputs["squares"] == [n * n for n in numbers]
    assert result.outputs["total"] == sum(n * n for n in numbers)


def test_a_map_inside_a_loop_starts_empty_every_time(run: Run) -> None:
    source = """
name: rounds
state: {round: 0}
nodes:
  each:
    use: set
    with: {values: {v: "${element + state.round}"}}
    over: "${[10, 20]}"
    item: element
    into: parts
  next:
    use: set
    with: {values: {round: "${state.round + 1}", kept: "${pluck(state.parts, 'v')}"}}
edges:
  - {from: start, to: each}
  - {from: each, to: next}
  - {from: next, when: "state.round < 3", to: each}
  - {from: next, to: end}
outputs: {kept: "${state.kept}"}
"""
    assert run(source).outputs == {"kept": [12, 22]}


def test_a_fan_out_is_joined_before_the_next_node(run: Run) -> None:
    source = """
name: fan
nodes:
  a: {use: set, with: {values: {a: 1}}}
  b: {use: set, with: {values: {b: 2}}}
  late: {use: set, with: {values: {b: "${state.b * 10}"}}}
  both: {use: set, with: {values: {sum: "${state.a + state.b}"}}}
edges:
  - {from: start, to: [a, b]}
  - {from: b, to: late}
  - {from: [a, late], to: both}
  - {from: both, to: end}
outputs: {sum: "${state.sum}"}
"""
    result = run(source)
    assert result.outputs == {"sum": 21}
    assert [step["node"] for step in result.steps].count("both") == 1


def test_a_sub_workflow_has_its_own_state_and_its_steps_are_named_by_path(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "count.yaml").write_text(COUNT, encoding="utf-8")
    source = """
name: outer
state: {n: 100}
nodes:
  inner: {use: workflow, with: {name: count.yaml, inputs: {to: 4}}, save: {outputs: inner}}
edges:
  - {from: start, to: inner}
  - {from: inner, to: end}
outputs: {inner: "${state.inner.n}", own: "${state.n}"}
"""
    result = run(source)
    assert result.error is None
    assert result.outputs == {"inner": 4, "own": 100}
    assert [step["node"] for step in result.steps] == ["inner/add"] * 4 + ["inner"]


def test_a_budget_stops_the_run_before_the_next_generation(run: Run) -> None:
    engine = ReplayEngine(["one two three four"])
    result = run(ASK, engine=engine, budget=Budget(tokens=8))
    assert result.status is RunStatus.INTERRUPTED and result.error is not None
    assert result.error["code"] == "budget_exhausted"
    assert result.outputs == {"one": "one two three four", "two": None}
    assert len(engine.requests) == 1


def test_a_budget_shortens_the_generation_that_would_pass_it(run: Run) -> None:
    engine = ReplayEngine(["a b c d e f g h i j"])
    result = run(ASK, engine=engine, budget=Budget(tokens=9))
    assert result.outputs["one"] == "a b c d e f"
    assert result.steps[0]["notes"]["max_tokens_cut_by_budget"] == 6
    assert result.usage["prompt_tokens"] + result.usage["completion_tokens"] <= 9


def test_steps_add_up_to_the_run(run: Run) -> None:
    engine = ReplayEngine(["x y", "z"])
    result = run(ASK, engine=engine)
    total = sum((Usage(**step["usage"]) for step in result.steps), Usage())
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "model_calls"):
        assert result.usage[name] == getattr(total, name)
    assert result.usage["model_calls"] == len(engine.requests) == 2


FLAKY = """
name: flaky
resources: {engine: {use: native}}
nodes:
  ask: {use: generate, with: {prompt: hello}, retry: {attempts: 3, backoff_seconds: 0}}
edges:
  - {from: start, to: ask}
  - {from: ask, to: end}
outputs: {text: "${state.text}"}
"""


class _Failing(ReplayEngine):
    failures = 2

    def generate(self, requests: Any) -> Any:
        from inference import InferenceError

        if self.failures:
            self.failures -= 1
            raise InferenceError("the device was lost")
        return super().generate(requests)


class _TooLong(ReplayEngine):
    def generate(self, requests: Any) -> Any:
        raise PromptTooLong("the prompt has more tokens than the context")


def test_a_retry_goes_on_after_failures_and_records_them(run: Run) -> None:
    result = run(FLAKY, engine=_Failing(["fine"]))
    assert result.outputs == {"text": "fine"}
    assert [("error" in step, step.get("superseded", False)) for step in result.steps] == [
        (True, True),
        (True, True),
        (False, False),
    ]


def test_bad_input_is_not_tried_again(run: Run) -> None:
    engine = _TooLong(["never"])
    result = run(FLAKY, engine=engine)
    assert result.status is RunStatus.FAILED and result.error is not None
    assert result.error["code"] == "prompt_too_long"
    assert len(result.steps) == 1


def test_retries_end(run: Run) -> None:
    engine = _Failing(["never"])
    engine.failures = 99
    result = run(FLAKY, engine=engine)
    assert result.status is RunStatus.FAILED and result.error is not None
    assert result.error["message"] == "the device was lost"
    assert len(result.steps) == 3


def test_a_node_that_takes_too_long_is_stopped_and_its_request_aborted(run: Run) -> None:
    engine = ReplayEngine(["slow"], seconds=30)
    source = FLAKY.replace("retry: {attempts: 3, backoff_seconds: 0}", "timeout: 0.05")
    result = run(source, engine=engine)
    assert result.status is RunStatus.FAILED and result.error is not None
    assert result.error["code"] == "timeout"
    assert set(engine.aborted) == {engine.requests[0].id}
    assert result.usage["model_calls"] == 1, "what an aborted request spent is charged"


def test_the_time_budget_reaches_the_engine_as_a_deadline(run: Run) -> None:
    engine = ReplayEngine(["x"])
    run(FLAKY, engine=engine, budget=Budget(seconds=50))
    assert engine.requests[0].seconds is not None and 0 < engine.requests[0].seconds <= 50


def test_events_tell_the_run_in_order(run: Run) -> None:
    events: list[Event] = []
    result = run(ASK, engine=ReplayEngine(["a", "b"]), sinks=[events.append], stream_text=True)
    kinds = [type(event) for event in events]
    assert kinds == [
        RunStarted,
        *(StepStarted, TokensProduced, TextDelta, ModelCalled, StepFinished) * 2,
        RunFinished,
    ]
    last = events[-1]
    assert isinstance(last, RunFinished) and last.result == result.to_dict()


def test_closing_the_stream_cancels_the_run_and_aborts_its_request(tmp_path: Path) -> None:
    file = tmp_path / "ask.yaml"
    file.write_text(ASK, encoding="utf-8")
    engine = ReplayEngine(["slow"], seconds=30)

    async def leave_early() -> None:
        workflow = load_workflow(file)
        resources = Resources(workflow.spec, ResourcePool())
        adopt(resources, engine)
        events = stream(workflow, {}, resources, RunOptions("left"))
        async for event in events:
            if isinstance(event, StepStarted):
                await asyncio.sleep(0.05)
                break
        await events.aclose()

    asyncio.run(leave_early())
    assert set(engine.aborted) == {engine.requests[0].id}


def test_the_stream_ends_with_the_result(tmp_path: Path) -> None:
    file = tmp_path / "count.yaml"
    file.write_text(COUNT, encoding="utf-8")

    async def collect() -> list[Event]:
        workflow = load_workflow(file)
        resources = Resources(workflow.spec, ResourcePool())
        inputs = workflow.check_inputs({})
        return [e async for e in stream(workflow, inputs, resources, RunOptions("s"))]

    events = asyncio.run(collect())
    assert isinstance(events[-1], RunFinished) and events[-1].result["outputs"] == {"n": 3}


def test_seeds_are_the_same_when_replayed_and_differ_between_steps(run: Run) -> None:
    first, again, other = (ReplayEngine(["x"]) for _ in range(3))
    run(ASK, engine=first, seed=7)
    run(ASK, engine=again, seed=7)
    run(ASK, engine=other, seed=8)
    seeds = [[request.sampling.seed for request in e.requests] for e in (first, again, other)]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 4


def test_sampling_of_a_node_comes_from_the_file(run: Run) -> None:
    engine = ReplayEngine(["x"])
    source = FLAKY.replace(
        "retry: {attempts: 3, backoff_seconds: 0}",
        'sampling: {temperature: 0.5, top_p: 0.9, seed: 3, max_tokens: 5, stop: ["END"]}',
    )
    assert run(source, engine=engine).error is None
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 3)
    assert (sampling.max_tokens, sampling.stop) == (5, ("END",))
    assert math.isclose(sampling.min_p, 0.0)


def test_an_expression_that_fails_names_itself(run: Run) -> None:
    result = run(COUNT.replace("state.n + 1", "state.n + 'one'"))
    assert result.status is RunStatus.FAILED and result.error is not None
    assert "state.n + 'one'" in result.error["message"]


def test_two_parallel_nodes_that_write_one_key_are_refused(tmp_path: Path) -> None:
    source = """
name: clash
nodes:
  a: {use: set, with: {values: {x: 1}}}
  b: {use: set, with: {values: {x: 2}}}
edges:
  - {from: start, to: [a, b]}
  - {from: [a, b], to: end}
outputs: {x: "${state.x}"}
"""
    file = tmp_path / "clash.yaml"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(InvalidWorkflow, match=r"side by side.*state\.x"):
        load_workflow(file)
