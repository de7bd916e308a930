"""Agents: every way to call one, over engines and retrievers that are handed in open."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api import Agent, AgentResult, AutoRAG, ClosedBook, NaiveRAG, RunFailed
from inference import InferenceInputError, Usage
from inference.engine import NativeConfig
from tests.api.agents.words import FACTS, Words
from tests.api.conftest import Ragwright
from tests.workflows.replay import ReplayEngine
from workflows.answers import BadAnswer
from workflows.errors import InvalidWorkflow, WorkflowInputError
from workflows.events import Event, RunFinished, RunStarted, StepFinished, TextDelta

SHOUT = """
name: shout
inputs: {word: {type: string}, times: {type: integer, default: 2, minimum: 1}}
state: {text: "", round: 0}
nodes:
  add:
    use: set
    with: {values: {text: "${state.text + inputs.word}", round: "${state.round + 1}"}}
edges:
  - {from: start, to: add}
  - {from: add, when: "state.round < inputs.times", to: add}
  - {from: add, to: end}
outputs: {text: "${state.text}"}
"""


@pytest.fixture
def shout(tmp_path: Path) -> Path:
    file = tmp_path / "shout.yaml"
    file.write_text(SHOUT, encoding="utf-8")
    return file


def test_a_run_gives_answer_citations_steps_and_usage() -> None:
    engine, words = ReplayEngine(["Ruben Sorley"]), Words()
    with NaiveRAG(engine=engine, retriever=words) as agent:
        result = agent.run("who designed the Harrow Bridge ?", k=2)
    assert result.raise_if_failed() is result and result.completed
    assert result.answer == "Ruben Sorley"
    assert [one.document_id for one in result.citations] == ["bridge", "ferry"]
    first = result.citations[0]
    assert first.text == FACTS["bridge"][first.start : first.end]
    assert [step.node for step in result.steps] == ["retrieve", "answer"]
    summed = sum((step.usage for step in result.steps), Usage())
    assert (summed.tokens, summed.model_calls, summed.retrievals) == (
        result.usage.tokens,
        result.usage.model_calls,
        result.usage.retrievals,
    )
    assert words.queries == ["who designed the Harrow Bridge ?"]
    assert isinstance(result.trace[0], RunStarted) and isinstance(result.trace[-1], RunFinished)


def test_a_result_is_the_object_that_the_command_prints(tmp_path: Path) -> None:
    with ClosedBook(engine=ReplayEngine(["yes"])) as agent:
        result = agent.run("so?")
    assert AgentResult.of(json.loads(json.dumps(result.to_dict()))) == AgentResult.of(
        result.to_dict()
    )
    result.write_trace(tmp_path / "trace.jsonl")
    lines = (tmp_path / "trace.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["type"] for line in lines] == [event.type for event in result.trace]


def test_every_way_to_call_gives_the_same_answer() -> None:
    async def awaited(agent: ClosedBook) -> list[str | None]:
        one = await agent.arun("q")
        last = [event async for event in agent.astream("q")][-1]
        assert isinstance(last, AgentResult)
        many = await agent.abatch(["q"])
        return [one.answer, last.answer, many[0].answer, agent.run("q").answer]

    with ClosedBook(engine=ReplayEngine(["a b c"])) as agent:
        *events, last = agent.stream("q")
        assert isinstance(last, AgentResult)
        answers = [agent.run("q").answer, last.answer, agent.batch(["q"])[0].answer]
        answers += asyncio.run(awaited(agent))
    assert answers == ["a b c"] * 7
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["a b c"]
    assert [type(e) for e in (events[0], events[-1])] == [RunStarted, RunFinished]


def test_what_is_left_out_is_an_option_and_then_the_workflows_default(shout: Path) -> None:
    with Agent.from_workflow(shout, options={"times": 3}) as agent:
        assert agent.run("a").outputs == {"text": "aaa"}
        assert agent.run(word="b", times=1).outputs == {"text": "b"}
    with Agent.from_workflow(shout) as agent:
        assert agent.run("c").outputs == {"text": "cc"}
        assert agent.run("c").answer is None
    with NaiveRAG(engine=ReplayEngine(["x"]), retriever=Words(), options={"k": 1}) as rag:
        assert len(rag.run("q").citations) == 1
        assert len(rag.run("q", k=2).citations) == 2


def test_a_batch_keeps_order_and_loses_nothing_to_a_bad_item(shout: Path) -> None:
    items: list[Any] = [f"w{n}" for n in range(20)]
    items[3] = {"word": 7}
    items[7] = {"wrod": "x"}
    items[9] = {"word": "z", "times": 1}
    with Agent.from_workflow(shout) as agent:
        results = agent.batch(items, concurrency=3)
    texts = [result.outputs["text"] for result in results]
    expected: list[Any] = [f"w{n}w{n}" for n in range(20)]
    expected[3] = expected[7] = None
    expected[9] = "z"
    assert texts == expected
    assert "did you mean 'word'" in (results[7].error or {})["message"]
    with pytest.raises(RunFailed, match="must be a string") as failed:
        results[3].raise_if_failed()
    assert failed.value.code == "bad_input" and failed.value.result is results[3]


def test_a_batch_runs_so_many_at_a_time() -> None:
    lock, now, most = threading.Lock(), 0, 0

    class Counting(ReplayEngine):
        def generate(self, requests: Any) -> Any:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.03)
            with lock:
                now -= 1
            return super().generate(requests)

    with ClosedBook(engine=Counting(["x"])) as agent:
        assert [r.answer for r in agent.batch(["q"] * 9, concurrency=3)] == ["x"] * 9
    assert most == 3


@pytest.mark.parametrize("way", ["close", "aclose", "cancel"])
def test_leaving_a_run_aborts_its_generation(way: str) -> None:
    engine = ReplayEngine(["a b"], seconds=30)

    async def leave(agent: ClosedBook) -> None:
        if way == "cancel":
            task = asyncio.create_task(agent.arun("q"))
            while not engine.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return
        stream = agent.astream("q")
        await anext(stream)
        await stream.aclose()

    with ClosedBook(engine=Live(engine)) as agent:
        began = time.monotonic()
        if way == "close":
            events = agent.stream("q")
            next(events)
            while not engine.requests:
                time.sleep(0.01)
            events.close()
        else:
            asyncio.run(leave(agent))
        assert time.monotonic() - began < 10
        assert engine.aborted or not engine.requests


class Live(ReplayEngine):
    """A replay whose stream does not stop the loop it is read on."""

    def __init__(self, inner: ReplayEngine) -> None:
        super().__init__(inner.turns, inner.seconds, inner.requests, inner.aborted)

    async def stream(self, request: Any) -> Any:
        from inference import Chunk

        [output] = await asyncio.to_thread(self.generate, [request])
        yield Chunk(output.text, output.token_ids, output)


def test_closing_an_agent_ends_what_runs() -> None:
    engine = Live(ReplayEngine(["a"], seconds=30))
    agent = ClosedBook(engine=engine)
    events = agent.stream("q")
    next(events)
    agent.close()
    agent.close()
    with pytest.raises(RuntimeError, match="closed; make another"):
        agent.run("q")
    last = list(events)[-1]
    assert isinstance(last, AgentResult) and last.status == "cancelled"
    assert engine.turns, "an engine that was handed in stays open"


def test_resources_are_opened_once_and_closed() -> None:
    opened: list[ReplayEngine] = []

    class Config(NativeConfig):
        def open(self) -> Any:
            opened.append(ReplayEngine(["x"]))
            return opened[-1]

    with ClosedBook(engine=Config()) as agent:
        assert [r.answer for r in agent.batch(["q"] * 5)] == ["x"] * 5
        assert agent.run("q").answer == "x"
    assert len(opened) == 1 and opened[0].turns == ()


def test_sinks_hear_every_event(shout: Path) -> None:
    heard: list[Event] = []
    with Agent.from_workflow(shout, sinks=[heard.append]) as agent:
        result = agent.run("x")
    assert tuple(heard) == result.trace
    assert sum(isinstance(event, StepFinished) for event in heard) == 2


def test_an_agent_cannot_wait_for_itself(shout: Path) -> None:
    seen: list[BaseException] = []

    def call(event: Event) -> None:
        if isinstance(event, RunStarted):
            try:
                agent.run("y")
            except RuntimeError as error:
                seen.append(error)

    with Agent.from_workflow(shout, sinks=[call]) as agent:
        assert agent.run("x").completed
    assert "cannot wait for itself" in str(seen[0])


def test_the_same_seed_is_the_same_run() -> None:
    seeds = []
    for seed in (1, 1, 2):
        engine = ReplayEngine(["x"])
        with ClosedBook(engine=engine, seed=seed) as agent:
            agent.run("q")
        seeds.append(engine.requests[0].sampling.seed)
    assert seeds[0] == seeds[1] != seeds[2]


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: AutoRAG(engine="native"), "searches documents; give docs=PATH"),
    (lambda: ClosedBook(docs="data/corpus"), "searches no documents; leave data/corpus out"),
    (lambda: NaiveRAG(docs="a", retriever="b"), "give one of them"),
    (lambda: ClosedBook(graph="g.tsv"), "uses no graph"),
    (lambda: ClosedBook(engine=NativeConfig(), model="m"), "give one of them"),
    (lambda: Agent.from_workflow("auto_rga"), "did you mean 'auto_rag'"),
    (lambda: Agent(), "Agent.from_workflow"),
    (lambda: ClosedBook(engine="naitve").run("q"), "did you mean 'native'"),
    (lambda: ClosedBook(engine=ReplayEngine(["x"])).batch("q"), "put this one in a list"),
    (lambda: Agent.from_workflow("closed_book").run("q", "r"), "the others by name"),
    (lambda: Agent.from_workflow("closed_book").run("q", question="r"), "the others by name"),
    (lambda: Agent.from_workflow("closed_book").run("q", max_token=3), "'max_tokens'"),
    (lambda: Agent.from_workflow("closed_book").stream("q", max_tokens=0), "at least 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_before_anything_runs(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(WorkflowInputError, match=message):
        call()


def test_a_file_with_faults_is_refused_with_all_of_them(shout: Path) -> None:
    shout.write_text(SHOUT.replace("use: set", "use: sett").replace("to: end", "to: edn"), "utf-8")
    with pytest.raises(InvalidWorkflow) as caught:
        Agent.from_workflow(shout)
    assert len(caught.value.faults) == 2


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceInputError), ClosedBook(model=str(tmp_path / "none")) as agent:
        agent.run("q")


ASKS = """
name: approve
inputs: {draft: {type: string}}
nodes:
  draft: {use: generate, with: {prompt: "${inputs.draft}"}}
  first: {use: interrupt, with: {ask: "${state.text}", choices: [send, drop]}, save: {answer: one}}
  second: {use: interrupt, with: {ask: to whom?}, save: {answer: two}}
edges:
  - {from: start, to: draft}
  - {from: draft, to: first}
  - {from: first, when: "state.one == 'drop'", to: end}
  - {from: first, to: second}
  - {from: second, to: end}
resources: {engine: {use: native}}
outputs: {answer: "${state.one}", whom: "${state.two}", text: "${state.text}"}
state: {two: null}
"""


@pytest.fixture
def asks(tmp_path: Path) -> Path:
    file = tmp_path / "approve.yaml"
    file.write_text(ASKS, encoding="utf-8")
    return file


def test_a_run_that_asks_goes_on_with_the_answers(asks: Path) -> None:
    engine = ReplayEngine(["dear all"])
    with Agent.from_workflow(asks, engine=engine) as agent:
        waiting = agent.run("write")
        assert (waiting.status, waiting.error) == ("interrupted", None)
        [ask] = waiting.asks
        assert (ask.node, ask.ask, ask.choices) == ("first", "dear all", ["send", "drop"])
        with pytest.raises(RunFailed, match="waits for an answer to"):
            waiting.raise_if_failed()
        with pytest.raises(BadAnswer, match="must be one of"):
            agent.resume(waiting, "burn")
        with pytest.raises(BadAnswer, match="nothing waits under"):
            agent.resume(waiting, {"x": "send"})
        again = agent.resume(waiting, "send")
        assert [one.ask for one in again.asks] == ["to whom?"]
        done = asyncio.run(agent.aresume(again, {again.asks[0].id: {"name": "everybody"}}))
        assert done.completed and done.run_id == waiting.run_id
        assert done.outputs == {
            "answer": "send",
            "whom": {"name": "everybody"},
            "text": "dear all",
        }
        with pytest.raises(WorkflowInputError, match="nothing to resume"):
            agent.resume(done)
        with pytest.raises(WorkflowInputError, match="not made by an agent in memory"):
            agent.resume(AgentResult.of(waiting.to_dict()), "send")
    assert len(engine.requests) == 1, "what was written before the question is not written again"
    assert done.usage.model_calls == 1


def test_a_run_stopped_by_its_budget_goes_on_under_a_higher_one(shout: Path) -> None:
    seen = 0

    def slow(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, StepFinished)
        time.sleep(0.02 * isinstance(event, StepFinished))

    with Agent.from_workflow(shout, budget={"seconds": 0.05}, sinks=[slow]) as agent:
        result = agent.run("x", times=30)
        assert result.status == "interrupted" and not result.asks
        assert result.error is not None and result.error["code"] == "budget_exhausted"
        again = agent.resume(result, budget={"seconds": 100})
    assert again.outputs == {"text": "x" * 30}
    assert seen == 30, "no step was run twice"


def test_a_kept_run_goes_on_in_another_agent_and_on_the_command_line(
    asks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ragwright: Ragwright
) -> None:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home" / "models"))
    steps = ASKS.replace("{use: generate, with: {prompt:", "{use: set, with: {values: {text:")
    steps = steps.replace('draft}"}}', 'draft}"}}}', 1)
    asks.write_text(steps.replace("resources: {engine: {use: native}}\n", ""), encoding="utf-8")
    with Agent.from_workflow(asks, keep=True) as agent:
        waiting = agent.run("dear all")
        assert agent.resume(waiting, "drop").answer == "drop"
        other = agent.run("dear all")
    with Agent.from_workflow(asks, keep=True) as again:
        second = again.resume(other, "send")
    status, out, _ = ragwright("run", "--resume", other.run_id, "--answer", "Ada", "--json")
    assert (status, json.loads(out)["outputs"]["whom"]) == (0, "Ada")
    assert second.asks[0].ask == "to whom?"
    with pytest.raises(WorkflowInputError, match="name them"):
        ClosedBook(engine=ReplayEngine(["x"]), keep=True)
