"""`ragwright submit`, `jobs` and `worker` on the command line."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.jobs.embedded import EmbeddedServer, redis_home
from api.jobs.redis_queue import RedisQueue
from api.settings import Settings
from tests.api.conftest import Ragwright
from tests.api.jobs.basis import claimed, result
from tests.chaos.fleet import COUNT, Fleet, Site


@pytest.fixture(autouse=True)
def place(
    valkey: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """An empty queue that the variables name."""
    file = tmp_path / "count.yaml"
    file.write_text(COUNT, encoding="utf-8")
    space = f"c{secrets.token_hex(4)}"
    monkeypatch.setenv("RAGWRIGHT_REDIS_URL", valkey.url)
    monkeypatch.setenv("RAGWRIGHT_NAMESPACE", space)
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield Site(valkey, Settings(), tmp_path / "home", file)


def work_on(job_id: str, outcome: dict[str, Any]) -> None:
    """Do what a worker does, with this outcome."""

    async def work() -> None:
        async with RedisQueue.open(Settings()) as queue:
            await queue.finish(await claimed(queue, job_id), outcome)

    asyncio.run(work())


def test_submit_prints_the_id_under_which_all_else_is_asked(
    ragwright: Ragwright, place: Site
) -> None:
    status, out, err = ragwright("submit", place.workflow, "--input", "to=3")
    job_id = out.strip()
    assert (status, err) == (0, "") and len(out.splitlines()) == 1
    status, out, _ = ragwright("jobs", "show", job_id)
    assert status == 0 and f"{job_id}  queued, attempt 0, normal priority" in out
    status, out, _ = ragwright("jobs", "list", "--json")
    listed = json.loads(out)
    assert [job["id"] for job in listed["data"]] == [job_id] and listed["next"] is None
    assert listed["data"][0]["inputs"] == {"to": 3}
    status, out, _ = ragwright("jobs", "cancel", job_id, "--json")
    assert status == 0 and json.loads(out)["state"] == "cancelled"
    status, out, err = ragwright("jobs", "wait", job_id)
    assert status == 1 and f"job {job_id} is cancelled" in err
    status, out, err = ragwright("jobs", "cancel", job_id)
    assert status == 2 and err.count("\n") == 1 and "cancelled already" in err


def test_submit_that_waits_prints_what_run_prints(ragwright: Ragwright, place: Site) -> None:
    with Fleet(place, 1):
        options = ("--input", "to=3", "--priority", "high", "--key", "k", "--seed", "5")
        status, out, err = ragwright("submit", place.workflow, *options, "--wait", "--json")
        job = json.loads(out)
        assert (status, job["state"], job["priority"]) == (0, "completed", "high"), err
        assert job["result"]["outputs"] == {"n": 3, "seen": [0, 1, 2]}
        again = json.loads(ragwright("submit", place.workflow, *options, "--json")[1])
        assert (again["id"], again["state"]) == (job["id"], "completed")
        status, out, err = ragwright("jobs", "wait", job["id"])
        assert status == 0 and "seen: 0, 1, 2" in out
    status, _, err = ragwright("submit", place.workflow, "--input", "to=4", "--key", "k")
    assert status == 2 and job["id"] in err and err.count("\n") == 1


def test_the_dead_letter_list_is_read_and_emptied(ragwright: Ragwright, place: Site) -> None:
    job_id = ragwright("submit", place.workflow)[1].strip()
    problem = {"code": "server_timeout", "message": "too slow"}
    work_on(job_id, result("failed", error=problem))
    status, out, _ = ragwright("jobs", "list", "--dead")
    assert status == 0 and job_id in out and "too slow" in out
    status, _, err = ragwright("jobs", "wait", job_id)
    assert status == 1 and "too slow" in err
    status, out, _ = ragwright("jobs", "retry", job_id)
    assert status == 0 and "queued" in out
    assert ragwright("jobs", "list", "--dead") == (0, "", "")
    status, _, err = ragwright("jobs", "retry", job_id)
    assert status == 2 and "only failed jobs" in err
    status, _, err = ragwright("jobs", "list", "--dead", "--state", "queued")
    assert status == 2 and "--dead" in err


def test_what_a_job_asks_is_shown_and_answered(ragwright: Ragwright, place: Site) -> None:
    job_id = ragwright("submit", place.workflow)[1].strip()
    ask = {"id": "1:check", "node": "check", "ask": "Send it?", "choices": ["yes", "no"]}
    work_on(job_id, result("interrupted", asks=[ask]))
    status, out, err = ragwright("jobs", "wait", job_id)
    assert status == 1 and "Send it?" in err and "1:check" in err
    status, _, err = ragwright("jobs", "resume", job_id, "--answer", "maybe")
    assert status == 2 and "'maybe'" in err and err.count("\n") == 1
    status, out, _ = ragwright("jobs", "resume", job_id, "--answer", "yes", "--json")
    assert status == 0 and json.loads(out)["state"] == "queued"


def test_pages_of_a_list(ragwright: Ragwright, place: Site) -> None:
    ids = [ragwright("submit", place.workflow)[1].strip() for _ in range(3)]
    first = json.loads(ragwright("jobs", "list", "--limit", 2, "--json")[1])
    assert [job["id"] for job in first["data"]] == ids[:0:-1]
    _, _, err = ragwright("jobs", "list", "--limit", 2)
    assert f"--cursor {first['next']}" in err
    rest = json.loads(ragwright("jobs", "list", "--cursor", first["next"], "--json")[1])
    assert [job["id"] for job in rest["data"]] == ids[:1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jobs", "show", "nope"), "no job 'nope'"),
        (("jobs", "wait", "nope"), "no job 'nope'"),
        (("jobs", "resume", "nope", "--budget", "tokens=5"), "no job 'nope'"),
        (("jobs", "resume", "nope", "--budget", "token=5"), "tokens"),
        (("jobs", "list", "--state", "done"), "'done'"),
        (("jobs", "list", "--cursor", "x"), "cursor 'x'"),
        (("submit", "no_such_workflow"), "no_such_workflow"),
        (("submit", "closed_book", "--question", "\udcff"), "UTF-8"),
        (("submit", "closed_book", "--question", "x", "--priority", "urgent"), "urgent"),
        (("submit", "closed_book"), "question"),
        (("worker", "--queues", "hihg"), "did you mean 'high'"),
        (("worker", "--queues", ","), "--queues"),
        (("worker", "--threads", "0"), "--threads"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    ragwright: Ragwright, arguments: tuple[str, ...], said: str
) -> None:
    status, out, err = ragwright(*arguments)
    assert (status, out) == (2, "") and said in err and err.count("\n") == 1
    assert json.loads(ragwright("jobs", "list", "--json")[1])["data"] == []


@pytest.mark.parametrize("command", [("jobs", "list"), ("worker",), ("submit", "closed_book")])
def test_without_a_queue_the_ways_to_one_are_named(
    ragwright: Ragwright, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.delenv("RAGWRIGHT_REDIS_URL")
    options = ("--question", "x") if command[0] == "submit" else ()
    status, _, err = ragwright(*command, *options)
    assert status == 2 and err.count("\n") == 1
    assert "RAGWRIGHT_REDIS_URL" in err and "serve --embedded" in err


def test_the_running_private_server_is_found(
    ragwright: Ragwright, place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAGWRIGHT_REDIS_URL")
    with EmbeddedServer() as server:
        assert server.folder == redis_home().resolve()
        status, out, err = ragwright("submit", place.workflow)
        assert status == 0, err
        assert out.strip() in ragwright("jobs", "list")[1]


@pytest.mark.parametrize(
    ("name", "value"), [("RAGWRIGHT_LEASE", "0"), ("RAGWRIGHT_NAMESPACE", "Ä:")]
)
def test_a_setting_that_cannot_be_used_is_named(
    ragwright: Ragwright, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    status, _, err = ragwright("jobs", "list")
    assert status == 2 and f"{name}='{value}'" in err and err.count("\n") == 1


def test_waiting_ends_with_the_time(ragwright: Ragwright, place: Site) -> None:
    job_id = ragwright("submit", place.workflow)[1].strip()
    status, _, err = ragwright("jobs", "wait", job_id, "--seconds", "0.1")
    assert status == 1 and "does not rest after 0.1 s" in err
