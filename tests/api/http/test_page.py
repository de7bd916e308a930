"""docs/http.md names the routes, scopes, limits and commands that there are, and no others."""

from __future__ import annotations

import re
import shlex

from fastapi.routing import APIRoute

from api.http.keys import Scope
from api.settings import Settings
from tests.api.http.site import Site
from tests.api.http.test_doors import needs
from tests.house.source import ROOT

PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(GET|POST|DELETE) (\S+)` \| ([^|]+) \|", re.MULTILINE)
ELSEWHERE = (
    "/v1/indexes",
    "/v1/graphs",
    "/v1/models",
    "/v1/chat",
    "/v1/completions",
    "/v1/embed",
    "/tokenize",
)
"""Routes that other pages describe."""


def test_the_table_is_the_applications(site: Site) -> None:
    written = {
        (method, path): {Scope(word) for word in re.findall(r"`(\w+)`", scopes)}
        for method, path, scopes in ROW.findall(PAGE)
    }
    served = {
        (method, route.path): needs(route.dependant)
        for route in site.app.routes
        if isinstance(route, APIRoute) and not route.path.startswith(ELSEWHERE)
        for method in route.methods
    }
    assert written == served


def test_the_session_can_be_typed(site: Site) -> None:
    """Every request of the page's shell lines, against the running application."""
    block = PAGE.partition("## A session")[2].partition("```sh\n")[2].partition("```")[0]
    seen, run_id = [], ""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words[0] != "curl":
            continue
        url = next(word for word in words if word.startswith("http://"))
        path = url.partition(":8080")[2].replace("RUN_ID", run_id)
        headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
        keyed = headers.pop("Authorization", "") == "Bearer $KEY"
        body = words[words.index("-d") + 1] if "-d" in words else None
        with site.client(site.alpha if keyed else None) as client:
            method = "POST" if body else "GET"
            with client.stream(method, path, headers=headers, content=body) as answer:
                assert answer.status_code in (200, 202), line
                if not path.endswith("/events"):
                    answer.read()
                    run_id = run_id or answer.json().get("id", "")
        seen.append(path.replace(run_id or "?", "RUN_ID"))
    assert seen == [
        "/health",
        "/v1/workflows",
        "/v1/runs",
        "/v1/runs/RUN_ID/events",
        "/v1/runs/RUN_ID",
    ]


def test_limits_and_scopes_are_those_of_the_code() -> None:
    table = re.findall(r"^\| `RAGWRIGHT_(\w+)` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    for name, shown in table:
        default = Settings.model_fields[name.lower()].default
        number = re.sub(r"\D", "", shown)
        if shown.endswith("MiB"):
            assert default == int(number) * 2**20
        else:
            assert str(default).lower() in (shown, number, f"{number}.0")
    assert len(table) == 7
    opens = PAGE.partition("| Scope | Opens |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", opens, re.MULTILINE)) == set(Scope)
