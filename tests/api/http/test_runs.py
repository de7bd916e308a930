"""Runs over HTTP: accepted once, seen by their tenant alone, ended, answered, retried."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.api.http.labour import Labour
from tests.api.http.site import Site

ORDER = {"workflow": "closed_book", "inputs": {"question": "Who wrote Emma?"}}


@pytest.fixture
def alpha(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.alpha) as client:
        yield client


@pytest.fixture
def beta(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.beta) as client:
        yield client


def submit(client: httpx2.Client, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/runs", json={**ORDER, **changes})
    assert answer.status_code == 202, answer.text
    run: dict[str, Any] = answer.json()
    return run


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_run_from_submission_to_result(site: Site, alpha: httpx2.Client) -> None:
    run = submit(alpha, seed=7, priority="high", budget={"tokens": 100})
    assert (run["state"], run["workflow"], run["tenant"]) == ("queued", "closed_book", "alpha")
    assert run["inputs"] == {"question": "Who wrote Emma?", "max_tokens": 64}
    labour = Labour(site, run["id"])
    manifest = labour.claim.job.manifest
    assert (manifest["seed"], manifest["budget"], manifest["tenant"]) == (
        7,
        {"tokens": 100},
        "alpha",
    )
    assert alpha.get(f"/v1/runs/{run['id']}").json()["state"] == "running"
    labour.finish(outputs={"answer": "Jane Austen"})
    ended = alpha.get(f"/v1/runs/{run['id']}").json()
    assert (ended["state"], ended["attempt"]) == ("completed", 1)
    assert ended["result"]["outputs"] == {"answer": "Jane Austen"}


def test_lists_are_pages_of_ones_own(alpha: httpx2.Client, site: Site) -> None:
    with site.client(site.key("gamma")) as client:
        made = [submit(client)["id"] for _ in range(7)]
        submit(alpha)
        seen, cursor = [], None
        while True:
            query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
            page = client.get("/v1/runs", params=query).json()
            seen += [run["id"] for run in page["data"]]
            assert all("result" not in run or run["result"] is None for run in page["data"])
            cursor = page["next"]
            if cursor is None:
                break
        assert seen == made[::-1]
        client.post(f"/v1/runs/{made[0]}/cancel")
        cancelled = client.get("/v1/runs", params={"state": "cancelled"}).json()["data"]
        assert [run["id"] for run in cancelled] == [made[0]]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "query.limit"),
        ({"limit": 201}, "query.limit"),
        ({"limit": "x"}, "query.limit"),
        ({"state": "gone"}, "query.state"),
        ({"cursor": "a b"}, "query.cursor"),
        ({"cursor": "9" * 300}, "query.cursor"),
        ({"cursor": "nonsense"}, None),
    ],
)
def test_lists_refuse(alpha: httpx2.Client, query: dict[str, Any], param: str | None) -> None:
    answer = alpha.get("/v1/runs", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"workflow": "../closed_book"}, "body.workflow"),
        ({"workflow": "/etc/passwd"}, "body.workflow"),
        ({"workflow": "x" * 64}, "body.workflow"),
        ({"workflow": "closed_book.yaml"}, "body.workflow"),
        ({"workflow": None}, "body.workflow"),
        ({"inputs": []}, "body.inputs"),
        ({"inputs": {str(number): 1 for number in range(65)}}, "body.inputs"),
        ({"inputs": {"question": "x" * 2**20}}, "body.inputs"),
        ({"inputs": {}}, None),
        ({"inputs": {"question": 7}}, None),
        ({"inputs": {"question": "q", "other": 1}}, None),
        ({"inputs": {"question": "q", "max_tokens": 0}}, None),
        ({"seed": -1}, "body.seed"),
        ({"seed": 1.5}, "body.seed"),
        ({"seed": True}, "body.seed"),
        ({"budget": {"tokens": 0}}, "body.budget.tokens"),
        ({"budget": {"tokens": 10**10}}, "body.budget.tokens"),
        ({"budget": {"seconds": -1}}, "body.budget.seconds"),
        ({"budget": {"euros": 1}}, "body.budget.euros"),
        ({"priority": "urgent"}, "body.priority"),
        ({"max_attempts": 0}, "body.max_attempts"),
        ({"max_attempts": 11}, "body.max_attempts"),
        ({"engine": "http://127.0.0.1"}, "body.engine"),
        ({"engine": "unheard"}, "body.engine"),
        ({"model": "/etc"}, "body.model"),
        ({"model": "../models"}, "body.model"),
        ({"model": "tests"}, "body.model"),
        ({"model": "https://host/model"}, "body.model"),
        ({"model": "owner/never-fetched"}, "body.model"),
        ({"index": "/tmp"}, "body.index"),
        ({"graph": "a/b"}, "body.graph"),
        ({"docs": "/etc"}, "body.docs"),
        ({"run_id": "mine"}, "body.run_id"),
    ],
)
def test_orders_that_are_refused(
    alpha: httpx2.Client, changes: dict[str, Any], param: str | None
) -> None:
    before = alpha.get("/v1/runs").json()["data"]
    answer = alpha.post("/v1/runs", json={**ORDER, **changes})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text
    assert alpha.get("/v1/runs").json()["data"] == before


def test_a_body_must_say_that_it_is_json(alpha: httpx2.Client) -> None:
    answer = alpha.post("/v1/runs", content=b'{"workflow": "closed_book"}')
    assert error_of(answer) == (422, "invalid_request")


def test_an_idempotency_key_is_one_run(alpha: httpx2.Client, beta: httpx2.Client) -> None:
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    first = alpha.post("/v1/runs", json=ORDER, headers=headers).json()
    again = alpha.post("/v1/runs", json=ORDER, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    other = alpha.post("/v1/runs", json={**ORDER, "seed": 1}, headers=headers)
    assert error_of(other) == (409, "idempotency_conflict")
    assert alpha.get(f"/v1/runs/{first['id']}").json() == first
    theirs = beta.post("/v1/runs", json={**ORDER, "seed": 1}, headers=headers)
    assert theirs.status_code == 202 and theirs.json()["id"] != first["id"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 201])
def test_idempotency_keys_have_a_form(alpha: httpx2.Client, key: str) -> None:
    answer = alpha.post("/v1/runs", json=ORDER, headers={"Idempotency-Key": key})
    assert error_of(answer) == (422, "invalid_request")


def test_a_full_queue_says_when_to_come_again(site: Site, alpha: httpx2.Client) -> None:
    submit(alpha)
    queue = site.service.queue
    before = queue.settings  # type: ignore[attr-defined]
    queue.settings = before.model_copy(update={"max_queued": 1})  # type: ignore[attr-defined]
    try:
        answer = alpha.post("/v1/runs", json=ORDER)
    finally:
        queue.settings = before  # type: ignore[attr-defined]
    assert error_of(answer) == (503, "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1


def test_cancel_is_once(site: Site, alpha: httpx2.Client) -> None:
    run = submit(alpha)["id"]
    assert alpha.post(f"/v1/runs/{run}/cancel").json()["state"] == "cancelled"
    assert error_of(alpha.post(f"/v1/runs/{run}/cancel")) == (409, "job_final")
    assert error_of(alpha.post(f"/v1/runs/{run}/retry")) == (409, "job_final")
    busy = submit(alpha)["id"]
    Labour(site, busy)
    asked = alpha.post(f"/v1/runs/{busy}/cancel").json()
    assert (asked["state"], asked["cancel_requested"]) == ("running", True)


def test_a_failed_run_is_retried(site: Site, alpha: httpx2.Client) -> None:
    run = submit(alpha)["id"]
    Labour(site, run).fail()
    failed = alpha.get(f"/v1/runs/{run}").json()
    assert (failed["state"], failed["error"]["code"]) == ("failed", "broken")
    again = alpha.post(f"/v1/runs/{run}/retry").json()
    assert (again["state"], again["error"]) == ("queued", None)


def test_a_run_that_asks_goes_on_with_the_answer(site: Site, alpha: httpx2.Client) -> None:
    run = submit(alpha)["id"]
    ask = {"id": "a1", "node": "approve", "text": "Send it?"}
    Labour(site, run).finish("interrupted", asks=[ask])
    waiting = alpha.get(f"/v1/runs/{run}").json()
    assert (waiting["state"], waiting["asks"]) == ("waiting", [ask])
    path = f"/v1/runs/{run}/resume"
    for wrong in ({}, {"answers": {}}, {"answers": {"a2": "yes"}}, {"budget": {"tokens": 5}}):
        assert error_of(alpha.post(path, json=wrong)) == (422, "bad_input")
    assert alpha.get(f"/v1/runs/{run}").json()["state"] == "waiting"
    resumed = alpha.post(path, json={"answers": {"a1": {"ok": True}}}).json()
    assert (resumed["state"], resumed["asks"]) == ("queued", [])
    assert error_of(alpha.post(path, json={"answers": {"a1": "x"}})) == (409, "job_final")
    assert Labour(site, run).claim.answers == {"a1": {"ok": True}}


def test_a_run_out_of_budget_goes_on_under_a_higher_one(site: Site, alpha: httpx2.Client) -> None:
    run = submit(alpha, budget={"tokens": 10})["id"]
    problem = {"code": "budget_exhausted", "message": "tokens"}
    Labour(site, run).finish("interrupted", error=problem)
    path = f"/v1/runs/{run}/resume"
    assert error_of(alpha.post(path, json={"budget": {"tokens": 10}})) == (422, "bad_input")
    assert alpha.post(path, json={"budget": {"tokens": 50}}).json()["state"] == "queued"
    assert Labour(site, run).claim.job.manifest["budget"] == {"tokens": 50}


def test_nobody_sees_anothers_runs(alpha: httpx2.Client, beta: httpx2.Client) -> None:
    run = submit(alpha)["id"]
    unknown = secrets.token_hex(6)
    for path, method in (
        ("", "GET"),
        ("/events", "GET"),
        ("/cancel", "POST"),
        ("/retry", "POST"),
        ("/resume", "POST"),
    ):
        body = {"json": {"answers": {"a": 1}}} if path == "/resume" else {}
        theirs = beta.request(method, f"/v1/runs/{run}{path}", **body)
        nobodys = beta.request(method, f"/v1/runs/{unknown}{path}", **body)
        assert error_of(theirs) == error_of(nobodys) == (404, "unknown_job")
        # Nothing but the id tells one from the other.
        message = theirs.json()["error"]["message"].replace(run, "ID")
        assert message == nobodys.json()["error"]["message"].replace(unknown, "ID")
    assert alpha.get(f"/v1/runs/{run}").json()["state"] == "queued"
    assert run not in beta.get("/v1/runs").text
