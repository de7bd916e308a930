"""The client against the real server: same results as agents, and nothing done twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from api import Agent, AgentResult, Client
from api.client import (
    AsyncClient,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    StateChanged,
    Unreachable,
)
from tests.api.client.conftest import WORKFLOWS
from tests.api.http.site import Site
from workflows.events import Event, RunFinished, RunStarted, StepFinished


def test_a_run_gives_what_an_agent_gives(client: Client, tmp_path: Any) -> None:
    (tmp_path / "shout.yaml").write_text(WORKFLOWS["shout"], encoding="utf-8")
    with Agent.from_workflow(tmp_path / "shout.yaml") as agent:
        own = agent.run("a", times=3)
    result = client.run("shout", {"word": "a", "times": 3}).raise_if_failed()
    assert result.answer == own.answer == "aaa"
    assert [step.task for step in result.steps] == [step.task for step in own.steps]
    told = [event for event in result.trace if not isinstance(event, StateChanged)]
    assert [type(event) for event in told] == [type(event) for event in own.trace]
    assert result.usage.tokens == 0


def test_every_way_to_call_gives_the_same(client: Client, served: Site) -> None:
    async def awaited() -> list[Any]:
        one = await client.arun("shout", {"word": "x"})
        last = [event async for event in client.astream("shout", {"word": "x"})][-1]
        many = await client.abatch("shout", [{"word": "x"}])
        async with AsyncClient(served.url, served.alpha) as own:
            here = await own.run("shout", {"word": "x"})
            listed = [run.id async for run in own.runs()]
        assert here.run_id in listed
        return [one, last, many[0], here]

    *events, last = client.stream("shout", {"word": "x"})
    assert next(e.state for e in events if isinstance(e, StateChanged)) == "queued"
    assert any(isinstance(e, RunStarted) for e in events) and isinstance(events[-1], RunFinished)
    assert sum(isinstance(event, StepFinished) for event in events) == 2
    results = [last, client.batch("shout", [{"word": "x"}])[0], *asyncio.run(awaited())]
    assert [result.answer for result in results] == ["xx"] * 6


def test_a_batch_keeps_order_and_loses_nothing_to_a_bad_item(client: Client) -> None:
    items = [{"word": "a"}, {"wrod": "b"}, {"word": "c"}]
    results = client.batch("shout", items, concurrency=2)
    assert [result.answer for result in results] == ["aa", None, "cc"]
    assert results[1].error is not None and "did you mean 'word'" in results[1].error["message"]


def test_a_run_that_fails_says_so(client: Client) -> None:
    result = client.run("clash", {}, max_attempts=1)
    assert result.status == "failed" and "zero" in (result.error or {})["message"]
    record = client.get(result.run_id)
    assert (record.state, record.attempt) == ("failed", 1)
    assert record.id == result.run_id


def test_a_submitted_run_is_found_again_and_never_doubled(client: Client) -> None:
    run = client.submit("shout", {"word": "k"}, idempotency_key="once")
    assert client.submit("shout", {"word": "k"}, idempotency_key="once").id == run.id
    with pytest.raises(Conflict) as caught:
        client.submit("shout", {"word": "other"}, idempotency_key="once")
    assert (caught.value.status, caught.value.code) == (409, "idempotency_conflict")
    assert caught.value.request_id
    assert client.wait(run).answer == "kk"
    assert client.get(run.id).at_rest
    kinds = [type(event) for event in client.events(run)]
    assert kinds.count(RunStarted) == 1
    assert run.id in [one.id for one in client.runs(state="completed")]


def test_closing_a_stream_cancels_the_run(client: Client) -> None:
    events = client.stream("shout", {"word": "z", "times": 9000})
    run_id = next(event.run_id for event in events if isinstance(event, RunStarted))
    events.close()
    result = client.wait(run_id)
    assert result.status == "cancelled"
    with pytest.raises(Conflict, match="already"):
        client.cancel(run_id)


def test_a_cancelled_wait_cancels_the_run(client: Client) -> None:
    async def leave() -> str:
        task = asyncio.create_task(client.arun("shout", {"word": "z", "times": 9000}))
        while not (running := [run.id async for run in _runs("running")]):
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return running[0]

    async def _runs(state: str) -> Any:
        for run in await asyncio.to_thread(lambda: list(client.runs(state=state))):
            yield run

    assert client.wait(asyncio.run(leave())).status == "cancelled"


def test_a_run_stopped_by_its_budget_goes_on(client: Client) -> None:
    result = client.run("shout", {"word": "b", "times": 60}, budget={"seconds": 0.05})
    assert result.status == "interrupted"
    assert result.error is not None and result.error["code"] == "budget_exhausted"
    again = client.resume(result, budget={"seconds": 100})
    assert again.completed and again.answer == "b" * 60
    assert again.run_id == result.run_id
    assert len({step.task for step in again.steps}) == 60


def test_a_failed_run_can_be_retried(client: Client) -> None:
    failed = client.run("clash", {}, max_attempts=1)
    assert client.retry(failed.run_id).id == failed.run_id
    assert client.wait(failed.run_id).status == "failed"


REFUSED: list[tuple[Any, type[Exception], int, str]] = [
    (lambda c: c.run("nowhere", {}), NotFound, 404, "nowhere"),
    (lambda c: c.submit("shout", {"word": 1}), BadRequest, 422, "must be a string"),
    (lambda c: c.submit("shout", {"word": "a"}, seed=-1), BadRequest, 422, "body.seed"),
    (lambda c: c.get("no-such-run"), NotFound, 404, "no-such-run"),
    (lambda c: list(c.events("no-such-run")), NotFound, 404, "no-such-run"),
    (lambda c: c.request("GET", "/v1/nothing"), NotFound, 404, "Not Found"),
]


@pytest.mark.parametrize(("call", "kind", "status", "message"), REFUSED)
def test_refusals_are_typed(
    client: Client, call: Any, kind: type[Exception], status: int, message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        call(client)
    error: Any = caught.value
    assert error.status == status and error.code and error.request_id in str(error)


def test_another_tenants_runs_are_unknown_and_a_wrong_key_is_refused(
    client: Client, served: Site
) -> None:
    run = client.run("shout", {"word": "s"})
    with Client(served.url, served.beta) as other, pytest.raises(NotFound):
        other.get(run.run_id)
    secret = "rw_wrong_canary-4711"
    with Client(served.url + "/v1/", secret) as stranger:
        assert secret not in repr(stranger)
        with pytest.raises(Forbidden) as caught:
            stranger.get(run.run_id)
    assert caught.value.code == "invalid_key" and secret not in str(caught.value)


def test_a_server_that_is_not_there_is_said_to_be_unreachable() -> None:
    began = time.monotonic()
    with Client("http://127.0.0.1:9", "k", retries=1) as client:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 does not answer .*tries: 2"):
            client.submit("shout", {"word": "a"})
        assert client.batch("shout", [{"word": "a"}])[0].status == "failed"
    assert time.monotonic() - began < 20
    with pytest.raises(ValueError, match="http://"):
        Client("localhost:8000")


def test_a_result_of_a_run_without_one_says_how_it_ended(client: Client) -> None:
    run = client.submit("shout", {"word": "q", "times": 9000}, priority="low")
    client.cancel(run.id)
    result = client.wait(run.id)
    assert isinstance(result, AgentResult) and result.status == "cancelled"
    assert result.error is not None and result.error["code"] == "cancelled"


def test_events_are_those_of_a_run_whoever_reads_them(client: Client) -> None:
    run = client.submit("shout", {"word": "e"})
    told: list[Event] = list(client.events(run))
    again: list[Event] = list(client.events(run.id))
    assert told == again
    assert all(isinstance(event, Event) for event in told)


def test_a_run_that_asks_goes_on_with_the_answer(client: Client) -> None:
    waiting = client.run("approve", {})
    assert (waiting.status, waiting.error) == ("interrupted", None)
    assert client.get(waiting.run_id).state == "waiting"
    [ask] = waiting.asks
    assert (ask.ask, ask.choices) == ("go on?", ["yes", "no"])
    with pytest.raises(BadRequest, match="must be one of"):
        client.resume(waiting, "perhaps")
    done = client.resume(waiting.run_id, {ask.id: "yes"})
    assert done.completed and done.answer == "yes" and done.run_id == waiting.run_id


def test_workflows_are_kept_on_the_server(client: Client) -> None:
    assert {"auto_rag", "shout"} <= {row["name"] for row in client.workflows.list()}
    assert client.workflows.get("shout")["origin"] == "uploaded"
    report = client.workflows.validate(WORKFLOWS["shout"].replace("use: set", "use: sett"))
    assert not report["valid"] and "did you mean 'set'" in report["faults"][0]["message"]
    with pytest.raises(BadRequest) as caught:
        client.workflows.upload("bad", "name: bad\n")
    assert caught.value.faults
    client.workflows.upload("gone", WORKFLOWS["clash"].replace("name: clash", "name: gone"))
    client.workflows.delete("gone")
    with pytest.raises(NotFound):
        client.workflows.get("gone")


def test_graphs_are_kept_on_the_server(client: Client, tmp_path: Path) -> None:
    facts = tmp_path / "facts.tsv"
    facts.write_text("Ada\twrote\tNotes\nNotes\tdescribe\tEngine\n", encoding="utf-8")
    assert client.graphs.create("facts", files=[facts])["state"] == "ready"
    with pytest.raises(Conflict):
        client.graphs.create("facts", files=[facts])
    client.graphs.add("facts", rows=[{"head": "Ada", "relation": "met", "tail": "Babbage"}])
    assert client.graphs.get("facts")["counts"]["triples"] == 3
    found = [hit.passage.text for hit in client.graphs.search("facts", "whom did Ada meet", k=3)]
    assert "Ada met Babbage" in found
    client.graphs.delete("facts")
    assert client.graphs.list() == client.indexes.list() == []
    with pytest.raises(NotFound):
        client.indexes.search("docs", "x")
    with pytest.raises(ValueError, match="either files or rows"):
        client.graphs.create("none")
