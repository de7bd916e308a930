"""What stands before every route: keys, ids, sane URLs, one shape of error."""

from __future__ import annotations

import pytest

from tests.api.http.site import Site


def test_health_needs_no_key(site: Site) -> None:
    with site.client() as client:
        answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert len(answer.headers["X-Request-ID"]) == 24


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/v1/nothing", "/", "/health/"])
def test_everything_else_does(site: Site, path: str) -> None:
    with site.client() as client:
        answer = client.get(path)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["code"] == "missing_key" and error["type"] == "authentication_error"
    assert error["request_id"] == answer.headers["X-Request-ID"]


def test_a_key_opens(site: Site) -> None:
    with site.client(site.alpha) as client:
        assert client.get("/openapi.json").status_code == 200
        answer = client.get("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
