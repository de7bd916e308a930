"""Workflows over HTTP: shipped ones for everybody, uploaded ones for their tenant, as data."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import jsonschema
import pytest

from api.settings import Settings
from tests.api.http.labour import Labour
from tests.api.http.site import Site, running
from tests.api.http.test_runs import error_of
from workflows.loading import shipped_workflows

ECHO = """
name: echo
description: Says what it was told.
inputs:
  text: {type: string}
  times: {type: integer, default: 2, minimum: 1, maximum: 9}
  tone: {type: string, default: null, choices: [soft, loud]}
  parts: {type: list, default: []}
nodes: {say: {use: set, with: {values: {said: "${inputs.text}"}}}}
edges: [{from: start, to: say}, {from: say, to: end}]
outputs: {said: "${state.said}"}
"""


@pytest.fixture
def alpha(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.alpha) as client:
        yield client


@pytest.fixture
def beta(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.beta) as client:
        yield client


def test_shipped_ones_are_everybodys(alpha: httpx2.Client, beta: httpx2.Client) -> None:
    rows = alpha.get("/v1/workflows").json()["data"]
    assert [row["name"] for row in rows if row["origin"] == "shipped"] == shipped_workflows()
    found = beta.get("/v1/workflows/auto_rag").json()
    assert found["mermaid"].startswith("flowchart TD") and "name: auto_rag" in found["text"]
    assert found["inputs"]["required"] == ["question"]
    assert "answer" in found["outputs"]


def test_an_upload_from_check_to_run_to_deletion(
    site: Site, alpha: httpx2.Client, beta: httpx2.Client
) -> None:
    assert alpha.post("/v1/workflows/validate", json={"text": ECHO}).json()["valid"]
    made = alpha.post("/v1/workflows", json={"name": "mine", "text": ECHO})
    assert made.status_code == 201 and made.json()["origin"] == "uploaded"
    assert alpha.get("/v1/workflows/mine").json() == made.json()
    assert ("mine", "uploaded") in {
        (row["name"], row["origin"]) for row in alpha.get("/v1/workflows").json()["data"]
    }
    assert "mine" not in beta.get("/v1/workflows").text
    order = {"workflow": "mine", "inputs": {"text": "hi"}}
    assert error_of(beta.post("/v1/runs", json=order)) == (404, "not_found")
    run = alpha.post("/v1/runs", json=order).json()["id"]
    assert alpha.delete("/v1/workflows/mine").status_code == 204
    assert error_of(alpha.get("/v1/workflows/mine")) == (404, "not_found")
    assert error_of(alpha.delete("/v1/workflows/mine")) == (404, "not_found")
    # What was submitted carries its own copy.
    assert Labour(site, run).claim.job.manifest["workflow_text"] == ECHO


def test_the_schema_of_inputs_says_what_a_run_takes(alpha: httpx2.Client) -> None:
    alpha.post("/v1/workflows", json={"name": "echo", "text": ECHO})
    schema = alpha.get("/v1/workflows/echo").json()["inputs"]
    checker = jsonschema.Draft202012Validator(schema)
    for inputs in (
        {"text": "a"},
        {"text": " "},
        {"text": ""},
        {"text": 1},
        {},
        {"text": "a", "times": 0},
        {"text": "a", "times": 9},
        {"text": "a", "times": 1.5},
        {"text": "a", "tone": None},
        {"text": "a", "tone": "soft"},
        {"text": "a", "tone": "shrill"},
        {"text": "a", "parts": [1, "b"]},
        {"text": "a", "parts": {}},
        {"text": "a", "other": 1},
    ):
        answer = alpha.post("/v1/runs", json={"workflow": "echo", "inputs": inputs})
        assert (answer.status_code == 202) == checker.is_valid(inputs), (inputs, answer.text)


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "- a",
        ECHO.replace("to: say", "to: sya"),
        ECHO.replace("use: set", "use: os.system"),
        ECHO + "resources: {engine: {use: native, model: /etc}}",
        ECHO + "resources: {e: {use: openai, base_url: 'http://127.0.0.1'}}",
        ECHO.replace("use: set, with", "use: workflow, with: {name: ../x.yaml}, x"),
        "a: &b 1\nc: *b",
        ECHO + "\x07",
    ],
)
def test_what_is_refused_says_where(alpha: httpx2.Client, text: str) -> None:
    before = alpha.get("/v1/workflows").json()
    report = alpha.post("/v1/workflows/validate", json={"text": text}).json()
    assert not report["valid"] and all(fault["line"] >= 1 for fault in report["faults"])
    answer = alpha.post("/v1/workflows", json={"name": "bad", "text": text})
    assert error_of(answer) == (422, "invalid_workflow")
    assert answer.json()["error"]["faults"] == report["faults"]
    assert alpha.get("/v1/workflows").json() == before


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "", "x" * 64, "-a", "a.yaml", "auto rag"])
def test_names_are_plain(alpha: httpx2.Client, name: str) -> None:
    answer = alpha.post("/v1/workflows", json={"name": name, "text": ECHO})
    assert error_of(answer) == (422, "invalid_request")


def test_shipped_names_are_taken(alpha: httpx2.Client) -> None:
    answer = alpha.post("/v1/workflows", json={"name": "auto_rag", "text": ECHO})
    assert error_of(answer) == (409, "name_taken")


def test_a_server_may_take_no_uploads(settings: Settings) -> None:
    closed = settings.model_copy(update={"allow_uploads": False})
    with running(closed) as site, site.client(site.alpha) as client:
        answer = client.post("/v1/workflows", json={"name": "mine", "text": ECHO})
        assert error_of(answer) == (403, "uploads_disabled")
        assert error_of(client.delete("/v1/workflows/mine")) == (403, "uploads_disabled")
        assert client.post("/v1/workflows/validate", json={"text": ECHO}).json()["valid"]
