"""How much, how often, how long: what is too much is refused, in the one shape."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Body, Request
from starlette.responses import StreamingResponse

from api.http.deps import DeadlineDep
from api.http.routing import router as build
from api.settings import Settings
from tests.api.http.site import Site, running

MOST = 4096
SECRET = "the text of a document"

probe = build("probe")


@probe.post("/probe/echo")
async def echo(body: Annotated[Any, Body()]) -> Any:
    return body


@probe.post("/probe/bytes")
async def count(request: Request) -> int:
    return len(await request.body())


@probe.get("/probe/broken")
async def broken() -> None:
    raise RuntimeError(SECRET)


@probe.get("/probe/broken-stream")
async def broken_stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(0)
        raise RuntimeError(SECRET)

    return StreamingResponse(parts())


@probe.get("/probe/slow")
async def slow(seconds: float, deadline: DeadlineDep) -> float:
    left = deadline - time.monotonic()
    await asyncio.sleep(seconds)
    return left


@pytest.fixture(scope="module")
def site(settings: Settings) -> Iterator[Site]:
    small = settings.model_copy(update={"max_body": MOST, "concurrency_per_key": 3})
    with running(small, probe) as found:
        yield found


def raw(site: Site, head: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Status and error of a request written byte by byte."""
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        key = f"Authorization: Bearer {site.alpha}\r\nHost: x\r\nConnection: close\r\n"
        line.sendall(head.replace("\n", "\r\n").encode("latin-1") + key.encode() + b"\r\n" + body)
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    start, _, rest = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(rest)["error"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", ["/probe/echo", "/probe/bytes", "/v1/nothing"])
def test_too_large_a_body(site: Site, declared: bool, path: str) -> None:
    pieces = [b"x" * 1000] * 5
    content = b"".join(pieces) if declared else iter(pieces)
    with site.client(site.alpha) as client:
        headers = {"Content-Type": "application/json"}
        answer = client.post(path, content=content, headers=headers)
        wanted = 404 if path == "/v1/nothing" and not declared else 413
        assert answer.status_code == wanted, answer.text
        if wanted == 413:
            assert answer.json()["error"]["code"] == "body_too_large"
        fits = client.post("/probe/bytes", content=b"x" * MOST)
        assert (fits.status_code, fits.json()) == (200, MOST)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"a": ', "invalid_json"),
        (b'{"a": "\xff"}', "invalid_json"),
        (b'"\\ud800"', "invalid_json"),
        (b'"\\u0000"', "invalid_json"),
        (b'{"\\u0000": 1}', "invalid_json"),
        (b"NaN", "invalid_json"),
        (b"1e999", "invalid_json"),
        (b"9223372036854775808", "invalid_json"),
        (b"[" * 33 + b"]" * 33, "invalid_json"),
        (b'{"a":' * 2000, "invalid_json"),
    ],
)
def test_what_is_no_json(site: Site, body: bytes, code: str) -> None:
    with site.client(site.alpha) as client:
        headers = {"Content-Type": "application/json"}
        answer = client.post("/probe/echo", content=body[:MOST], headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_json_at_its_limits_passes(site: Site) -> None:
    value = [[2**63 - 1, -(2**63) + 1, 1e308, "\U0001f600", {"": None}]]
    for _ in range(29):
        value = [value]
    with site.client(site.alpha) as client:
        answer = client.post("/probe/echo", json=value)
    assert answer.json() == value


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v1/%ff", 400, "bad_url"),
        ("/v1/%c3%28", 400, "bad_url"),
        ("/v1/a%00b", 400, "bad_url"),
        ("/v1/a?x=%0a", 400, "bad_url"),
        ("/v1/a?x=%80", 400, "bad_url"),
        ("/v1/" + "a" * 9000, 414, "url_too_long"),
        ("/v1/a?" + "a" * 9000, 414, "url_too_long"),
        ("/%2e%2e/%2e%2e/etc/passwd", 404, "not_found"),
        ("//v1//runs", 404, "not_found"),
    ],
)
def test_urls(site: Site, target: str, status: int, code: str) -> None:
    found, error = raw(site, f"GET {target} HTTP/1.1\n")
    assert (found, error["code"]) == (status, code)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("X-Request-Timeout: soon", "bad_timeout"),
        ("X-Request-Timeout: -1", "bad_timeout"),
        ("X-Request-Timeout: nan", "bad_timeout"),
        ("X-Request-Timeout: 1e999", "bad_timeout"),
    ],
)
def test_headers(site: Site, header: str, code: str) -> None:
    status, error = raw(site, f"GET /probe/slow?seconds=0 HTTP/1.1\n{header}\n")
    assert (status, error["code"]) == (400, code)


@pytest.mark.parametrize("given", ["abc-1.2_3", "a" * 64])
def test_a_sane_request_id_is_kept(site: Site, given: str) -> None:
    _, error = raw(site, f"GET /v1/nothing HTTP/1.1\nX-Request-ID: {given}\n")
    assert error["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "\xff", "a" * 65, "<script>"])
def test_another_is_not(site: Site, given: str) -> None:
    _, error = raw(site, f"GET /v1/nothing HTTP/1.1\nX-Request-ID: {given}\n")
    assert error["request_id"] != given and len(error["request_id"]) == 24


def test_a_method_that_no_route_has(site: Site) -> None:
    status, error = raw(site, "BREW /health HTTP/1.1\n")
    assert (status, error["code"]) == (405, "method_not_allowed")
    status, error = raw(site, "DELETE /docs HTTP/1.1\n")
    assert (status, error["code"]) == (405, "method_not_allowed")


def test_a_defect_says_nothing_but_its_id(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.client(site.alpha) as client, caplog.at_level(logging.INFO):
        answer = client.get("/probe/broken")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (500, "internal_error")
        assert client.get("/health").status_code == 200
    [logged] = [record for record in caplog.records if record.name == "ragwright.http"]
    assert error["request_id"] in logged.getMessage()
    assert "in broken\n" in logged.getMessage() and "RuntimeError" in logged.getMessage()
    assert SECRET not in caplog.text + answer.text


def test_an_answer_that_breaks_off_is_cut(site: Site) -> None:
    with site.client(site.alpha) as client:
        with pytest.raises(Exception, match="incomplete"):
            client.get("/probe/broken-stream")
        assert client.get("/health").status_code == 200


def test_the_log_holds_no_secret(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.client(site.alpha) as client, caplog.at_level(logging.DEBUG, "ragwright"):
        client.post("/probe/echo?q=private", json={"question": "private"})
        # The line is written when the answer is out.
        site.do(asyncio.sleep(0.1))
    [line] = [record for record in caplog.records if record.name == "ragwright.access"]
    assert "POST /probe/echo 200" in line.getMessage()
    assert "tenant=alpha" in line.getMessage()
    assert "private" not in caplog.text
    assert site.alpha.split("_", 2)[2] not in caplog.text


def test_a_deadline_ends_who_is_silent(site: Site) -> None:
    with site.client(site.alpha) as client:
        began = time.monotonic()
        headers = {"X-Request-Timeout": "0.2"}
        answer = client.get("/probe/slow?seconds=30", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - began < 10
        left = client.get("/probe/slow?seconds=0", headers={"X-Request-Timeout": "50"}).json()
        assert 40 < left <= 50
        left = client.get("/probe/slow?seconds=0", headers={"X-Request-Timeout": "9999"}).json()
        assert 290 < left <= 300


def test_a_key_has_so_many_requests_in_flight(site: Site) -> None:
    def occupy() -> None:
        with site.client(site.alpha) as client:
            assert client.get("/probe/slow?seconds=1.5").status_code == 200

    others = [threading.Thread(target=occupy) for _ in range(3)]
    for thread in others:
        thread.start()
    deadline = time.monotonic() + 10
    while site.service.in_flight < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with site.client(site.alpha) as client, site.client(site.beta) as beta:
        answer = client.get("/probe/slow?seconds=0")
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_requests")
        assert int(answer.headers["Retry-After"]) >= 1
        assert beta.get("/probe/slow?seconds=0").status_code == 200
        for thread in others:
            thread.join()
        assert client.get("/probe/slow?seconds=0").status_code == 200


def test_a_key_makes_so_many_requests_a_minute(settings: Settings) -> None:
    tight = settings.model_copy(update={"rate_per_minute": 30})
    with (
        running(tight, probe) as site,
        site.client(site.alpha) as client,
        site.client(site.beta) as beta,
    ):
        answers = [client.get("/probe/slow?seconds=0") for _ in range(35)]
        statuses = [answer.status_code for answer in answers]
        assert statuses[:30] == [200] * 30
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "rate_limited"
        assert beta.get("/probe/slow?seconds=0").status_code == 200
        time.sleep(int(refused.headers["Retry-After"]) + 0.1)
        assert client.get("/probe/slow?seconds=0").status_code == 200
        # Who has no key takes nothing from who has one.
        with site.client(site.beta[:-1] + "_") as wrong:
            assert {wrong.get("/docs").status_code for _ in range(40)} == {401}
        assert beta.get("/probe/slow?seconds=0").status_code == 200
