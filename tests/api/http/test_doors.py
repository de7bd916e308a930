"""Nothing without a key: every route of the application's own table, and every wrong caller.

The routes are taken from the running application, so one that is added later is covered.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import Route

from api.http.deps import Need
from api.http.edge import OPEN
from api.http.keys import Scope
from api.http.routing import JsonRoute
from tests.api.http.site import Site
from tests.house.source import ROOT

FREE = {"/docs", "/docs/oauth2-redirect", "/openapi.json"}
"""What any key opens: it describes the API and holds nobody's data."""


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route, its parameters filled in."""
    for route in app.routes:
        assert isinstance(route, Route), f"{route}: mounts and sockets are behind no key yet"
        for method in sorted(route.methods or ()):
            yield method, re.sub(r"{[^}]+}", "abcdef012345", route.path)


def needs(dependant: Dependant) -> set[Scope]:
    """The scopes of which a route asks one."""
    own = set(dependant.call.scopes) if isinstance(dependant.call, Need) else set()
    return own.union(*(needs(part) for part in dependant.dependencies))


def requests(site: Site) -> list[tuple[str, str]]:
    found = [row for row in routes(site.app) if row[1] != OPEN]
    assert len(found) > 10
    return found


def answers(site: Site, authorization: str | None) -> dict[tuple[str, str], tuple[int, str]]:
    """What each route says to a caller."""
    headers = {} if authorization is None else {"Authorization": authorization}
    heard = {}
    with site.client() as client:
        for method, path in requests(site):
            answer = client.request(method, path, headers=headers)
            code = "" if method == "HEAD" else answer.json()["error"]["code"]
            heard[method, path] = (answer.status_code, code)
    return heard


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Basic YTpi", "rw_0_0", "Bearer\trw_0_0"],
)
def test_no_key(site: Site, authorization: str | None) -> None:
    assert {status for status, _ in answers(site, authorization).values()} == {401}


def test_wrong_keys(site: Site) -> None:
    secret = secrets.token_urlsafe(32)
    key_id = site.alpha.split("_")[1]
    for text in (f"rw_{key_id}_{secret}", f"rw_{'0' * 16}_{secret}", "sk-1", site.alpha + "x"):
        heard = set(answers(site, f"Bearer {text}").values())
        assert heard - {(401, "")} == {(401, "invalid_key")}


def test_revoked_and_expired_keys(site: Site) -> None:
    revoked, rotated = site.key("alpha"), site.key("alpha")
    site.do(site.service.keys.revoke(revoked.split("_")[1]))
    site.do(site.service.keys.rotate(rotated.split("_")[1], overlap=0))
    for text in (revoked, rotated):
        assert set(answers(site, f"Bearer {text}").values()) - {(401, "")} == {(401, "invalid_key")}


def test_every_route_names_a_scope_and_keeps_to_it(site: Site) -> None:
    keys = {scope: site.key("alpha", *(set(Scope) - {scope})) for scope in Scope}
    lone = {scope: site.key("alpha", scope) for scope in Scope}
    seen: set[Scope] = set()
    with site.client() as client:
        for route in site.app.routes:
            if not isinstance(route, APIRoute) or route.path == OPEN:
                continue
            wanted = needs(route.dependant)
            assert wanted, f"{route.path} asks for no scope"
            seen |= wanted
            path = re.sub(r"{[^}]+}", "abcdef012345", route.path)
            for method in route.methods:
                for scope in set(Scope) - wanted:
                    headers = {"Authorization": f"Bearer {lone[scope]}"}
                    answer = client.request(method, path, headers=headers)
                    error = answer.json()["error"]
                    assert (answer.status_code, error["code"]) == (403, "missing_scope"), path
                if len(wanted) == 1:
                    headers = {"Authorization": f"Bearer {keys[wanted.copy().pop()]}"}
                    assert client.request(method, path, headers=headers).status_code == 403
    assert {Scope.RUNS, Scope.READ, Scope.WRITE, Scope.ADMIN} <= seen


def test_routes_that_describe_the_api_are_these(site: Site) -> None:
    plain = {route.path for route in site.app.routes if not isinstance(route, APIRoute)}
    assert plain == FREE


def test_every_route_reads_json_strictly_and_has_a_name_of_its_own(site: Site) -> None:
    own = [route for route in site.app.routes if isinstance(route, APIRoute)]
    assert all(isinstance(route, JsonRoute) for route in own)
    names = [route.operation_id or route.unique_id for route in own]
    assert len(names) == len(set(names))


def test_another_tenants_ids_are_nobodys(site: Site) -> None:
    """Every route with an id, with one that exists and is another's, and one that does not."""
    made = dict(belongings(site))
    with site.client(site.beta) as client:
        for route in site.app.routes:
            if not isinstance(route, APIRoute) or "{" not in route.path:
                continue
            kind = route.path.split("/")[2]
            assert kind in made, f"{route.path}: let `belongings` make one of alpha's {kind}"
            for method in route.methods:
                theirs = client.request(method, fill(route.path, made[kind]), json={})
                nobodys = client.request(method, fill(route.path, "abcdef012345"), json={})
                assert theirs.status_code == nobodys.status_code, (route.path, theirs.text)
                assert 400 <= theirs.status_code < 500


def fill(path: str, name: str) -> str:
    return re.sub(r"{[^}]+}", name, path)


def belongings(site: Site) -> Iterator[tuple[str, Any]]:
    """One thing of alpha's of each kind, by the first part of its path."""
    with site.client(site.alpha) as client:
        order = {"workflow": "closed_book", "inputs": {"question": "q"}}
        yield "runs", client.post("/v1/runs", json=order).json()["id"]
        text = shipped("closed_book")
        upload = {"name": "theirs", "text": text}
        assert client.post("/v1/workflows", json=upload).status_code == 201
        yield "workflows", "theirs"
        yield "models", "workflow/theirs"
        fact = {"head": "Emma", "relation": "written by", "tail": "Jane Austen"}
        graph = {"name": "theirs", "triples": [fact]}
        assert client.post("/v1/graphs", json=graph).status_code in (201, 202)
        yield "graphs", "theirs"
        document = {"id": "d1", "title": "Emma", "text": "Emma was written by Jane Austen."}
        index = {"name": "theirs", "documents": [document]}
        answer = client.post("/v1/indexes", json=index)
        assert answer.status_code in (201, 202), answer.text
        yield "indexes", "theirs"


def shipped(name: str) -> str:
    return (ROOT / "workflows" / "library" / f"{name}.yaml").read_text(encoding="utf-8")
