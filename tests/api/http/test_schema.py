"""No input makes a 5xx, and every answer is what the OpenAPI document says.

Requests are made up from the document of the running application, so a route that is added later
is covered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.settings import Settings
from tests.api.http.labour import Labour
from tests.api.http.served import Served, served, until
from tests.api.http.site import Site, running
from tests.api.http.test_runs import submit

SHORT, LONG = 200, 5000
"""Requests to each route: the same ones every time, and others every time."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


class Door(NamedTuple):
    """What is known of a server: its document, a key with every scope, things that are there."""

    schema: dict[str, Any]
    key: str
    parameters: list[dict[str, str]]


def known(site: Site) -> Iterator[dict[str, str]]:
    """Path parameters that mean something: a run that ended, one that waits, shipped things."""
    with site.client(site.alpha) as client:
        ended, waiting = submit(client)["id"], submit(client)["id"]
    Labour(site, ended).finish(outputs={})
    ask = {"id": "a1", "node": "approve", "text": "Send it?"}
    Labour(site, waiting).finish("interrupted", asks=[ask])
    yield {"run_id": ended, "name": "auto_rag"}
    yield {"run_id": waiting, "name": "closed_book"}


def cases(operation: Any, parameters: list[dict[str, str]]) -> st.SearchStrategy[Case]:
    """Requests that fit the document, requests that do not, and some for what is there."""
    names = {parameter.name for parameter in operation.path_parameters}
    fixed = [{name: row[name] for name in names} for row in parameters if names <= row.keys()]
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    kinds = [operation.as_strategy(mode) for mode in modes]
    if names:
        kinds += [operation.as_strategy(modes[0], path_parameters=row) for row in fixed]
    return st.one_of(kinds)


@pytest.fixture(scope="module")
def server(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Door]]:
    """A process of its own: Hypothesis takes what threads of this one draw at random for flakes."""
    with running(settings) as site:
        door = Door(site.app.openapi(), site.alpha, list(known(site)))
    variables = {
        "REDIS_URL": str(settings.redis_url),
        "NAMESPACE": settings.namespace,
        "MODEL": str(settings.model),
        "RATE_PER_MINUTE": str(settings.rate_per_minute),
    }
    home = tmp_path_factory.mktemp("served")
    environment = {f"RAGWRIGHT_{name}": value for name, value in variables.items()}
    with served(home, "--workers", "0", **environment) as found:
        yield found, door


@pytest.mark.parametrize(
    "examples", [SHORT, pytest.param(LONG, marks=pytest.mark.soak)], ids=["short", "soak"]
)
def test_no_input_makes_a_5xx(
    server: tuple[Served, Door], subtests: pytest.Subtests, examples: int
) -> None:
    process, door = server
    schema = schemathesis.openapi.from_dict(door.schema)
    seen = 0
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {door.key}"
        for result in schema.get_all_operations():
            operation = result.ok()

            @hypothesis.settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=examples == SHORT,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=cases(operation, door.parameters))
            def answers(case: Case) -> None:
                response = case.call(base_url=process.url, session=session, timeout=30)
                case.validate_response(response, checks=CHECKS)

            with subtests.test(operation.label):
                answers()
                seen += 1
        assert seen > 10
        # Of the last answer the server may not have let go yet; this request counts itself.
        idle = "ragwright_http_in_flight 1.0"
        until(lambda: idle in session.get(f"{process.url}/metrics", timeout=30).text, process.log)
