"""Graphs over HTTP: uploads, searches, walks, other tenants, hostile files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.api.http.site import Site

FACTS = "Ada\twrote\tNotes\nNotes\tdescribe\tEngine\nBabbage\tdesigned\tEngine\n"
TRIPLES = [
    {"head": head, "relation": relation, "tail": tail}
    for head, relation, tail in (line.split("\t") for line in FACTS.splitlines())
]
LAUGHS = "".join(f'<!ENTITY l{n} "&l{n - 1};&l{n - 1};&l{n - 1};">' for n in range(1, 40))
NS = "http://graphml.graphdrawing.org/xmlns"


@pytest.fixture
def alpha(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.alpha) as client:
        yield client
        for entry in client.get("/v1/graphs").json()["data"]:
            client.delete(f"/v1/graphs/{entry['name']}")


@pytest.fixture
def beta(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.beta) as client:
        yield client


def sent(client: httpx2.Client, name: str, file: str, content: str | bytes) -> httpx2.Response:
    data = content.encode() if isinstance(content, str) else content
    return client.post("/v1/graphs", data={"name": name}, files=[("files", (file, data))])


def code(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    found: str = answer.json()["error"]["code"]
    return found


def test_triples_are_kept_searched_walked_and_deleted(alpha: httpx2.Client) -> None:
    answer = sent(alpha, "g", "facts.tsv", FACTS)
    assert (answer.status_code, answer.json()["state"]) == (201, "ready")
    assert answer.json()["counts"] == {"triples": 3, "entities": 4, "relations": 3}
    body = {
        "triples": [{"head": "Ada", "relation": "met", "tail": "Babbage", "source": "a letter"}]
    }
    more = alpha.post("/v1/graphs/g/triples", json=body)
    assert (more.status_code, more.json()["counts"]["triples"], more.json()["version"]) == (
        200,
        4,
        2,
    )
    (result,) = alpha.post(
        "/v1/graphs/g/search", json={"query": "Which notes did ada make?"}
    ).json()["results"]
    assert [(link["entity"], link["how"]) for link in result["linked"]] == [
        ("Notes", "name"),
        ("Ada", "name"),
    ]
    hit = result["hits"][0]
    assert (hit["text"], hit["source"], hit["metadata"]["line"]) == (
        "Ada wrote Notes",
        "facts.tsv:1",
        1,
    )
    near = alpha.post("/v1/graphs/g/neighbours", json={"entity": "engine"}).json()
    assert {fact["head"] for fact in near["facts"]} == {"Notes", "Babbage"} and near["complete"]
    only = {"entity": "Ada", "hops": 2, "relations": ["met"], "direction": "out"}
    (fact,) = alpha.post("/v1/graphs/g/neighbours", json=only).json()["facts"]
    assert (fact["tail"], fact["source"], fact["line"], fact["hop"]) == (
        "Babbage",
        "a letter",
        None,
        1,
    )
    paths = alpha.post("/v1/graphs/g/paths", json={"from": "ada", "to": "engine"}).json()
    assert [path["length"] for path in paths["paths"]] == [2, 2]
    assert (paths["from"]["entity"], paths["to"]["entity"]) == ("Ada", "Engine")
    assert alpha.delete("/v1/graphs/g").status_code == 204
    assert code(alpha.get("/v1/graphs/g"), 404) == "not_found"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.nt", "<http://x/Ada> <http://x/wrote> <http://x/Notes> .\n"),
        ("a.ttl", "@prefix : <http://x/> . :Ada :wrote :Notes .\n"),
        (
            "a.graphml",
            f'<graphml xmlns="{NS}"><key id="k" for="edge" attr.name="label" attr.type="string"/>'
            '<graph edgedefault="directed"><node id="Ada"/><node id="Notes"/>'
            '<edge source="Ada" target="Notes"><data key="k">wrote</data></edge></graph></graphml>',
        ),
    ],
)
def test_every_format(alpha: httpx2.Client, file: str, content: str) -> None:
    assert sent(alpha, "g", file, content).status_code == 201
    (result,) = alpha.post("/v1/graphs/g/search", json={"query": "ada"}).json()["results"]
    assert [hit["text"] for hit in result["hits"]] == ["Ada wrote Notes"]


def test_another_tenant_finds_nothing(alpha: httpx2.Client, beta: httpx2.Client) -> None:
    assert sent(alpha, "g", "facts.tsv", FACTS).status_code == 201
    for answer in (
        beta.get("/v1/graphs/g"),
        beta.delete("/v1/graphs/g"),
        beta.post("/v1/graphs/g/restart"),
        beta.post("/v1/graphs/g/search", json={"query": "ada"}),
        beta.post("/v1/graphs/g/neighbours", json={"entity": "ada"}),
        beta.post("/v1/graphs/g/paths", json={"from": "ada", "to": "Engine"}),
        beta.post("/v1/graphs/g/triples", json={"triples": TRIPLES}),
    ):
        assert code(answer, 404) == "not_found"
    assert beta.get("/v1/graphs").json() == {"data": []}


@pytest.mark.parametrize(
    ("file", "content", "place"),
    [
        ("a.tsv", "a\tb\tc\nd\n", "a.tsv:2: 1 columns"),
        ("a.tsv", b"a\tb\tc\n\xc3\x28\tb\tc\n", "a.tsv:2: not UTF-8"),
        ("a.tsv", b"\x00", "a.tsv:1: binary content"),
        ("a.tsv", "", "a.tsv: holds no triple"),
        ("a.ttl", "@prefix x <", "a.ttl:1: not Turtle"),
        ("a.ttl", "<a> <b> " + "(" * 20_000, "a.ttl:1: "),
        ("a.nt", "<a> <b>\n", "a.nt:1: not N-Triples"),
        (
            "a.graphml",
            f"<!DOCTYPE g [<!ENTITY l0 'ha'>{LAUGHS}]><g>&l39;</g>",
            "a.graphml:1: a docu",
        ),
        (
            "a.graphml",
            '<!DOCTYPE g [<!ENTITY x SYSTEM "file:///etc/hostname">]><g>&x;</g>',
            "a.graphml:1: a document type declaration is not allowed",
        ),
        (
            "a.graphml",
            '<!DOCTYPE g SYSTEM "http://192.0.2.1/g.dtd"><g/>',
            "a.graphml:1: a document type declaration is not allowed",
        ),
        ("a.graphml", "<g>" * 100, "a.graphml:1: elements nested deeper"),
        ("../../a.tsv", FACTS, "the file name '../../a.tsv' must be"),
        ("a.tsv.zip", FACTS, "a.tsv.zip: the format '.zip' is not supported"),
    ],
)
def test_files_that_cannot_be_used_are_400_with_their_place(
    alpha: httpx2.Client, file: str, content: str | bytes, place: str
) -> None:
    answer = sent(alpha, "bad", file, content)
    assert code(answer, 400) == "bad_upload"
    assert answer.json()["error"]["message"].startswith(place)
    assert alpha.get("/v1/graphs").json() == {"data": []}


def test_names_that_only_are_names(alpha: httpx2.Client) -> None:
    text = '<http://x/a> <http://www.w3.org/2000/01/rdf-schema#label> "A" .\n'
    answer = sent(alpha, "names", "a.nt", text)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("route", "body", "wanted"),
    [
        ("triples", {"triples": [{"head": " ", "relation": "r", "tail": "t"}]}, "bad_upload"),
        ("triples", {"triples": [{"head": "h", "relation": "r"}]}, "invalid_request"),
        ("triples", {"triples": []}, "invalid_request"),
        ("search", {"query": "ada", "hops": 9}, "invalid_request"),
        ("search", {"query": "ada", "where": {"haed": "x"}}, "unknown_name"),
        ("neighbours", {"entity": "nobody"}, "unknown_entity"),
        ("neighbours", {"entity": "Ada", "relations": ["wrot"]}, "bad_input"),
        ("neighbours", {"entity": "Ada", "direction": "up"}, "invalid_request"),
        ("neighbours", {"entity": "\ufdd0", "limit": 1}, "unknown_entity"),
        ("paths", {"from": "Ada", "to": "Ada"}, "bad_input"),
        ("paths", {"start": "Ada", "goal": "Engine"}, "invalid_request"),
        ("paths", {"from": "Ada", "to": "Engine", "hops": 9}, "invalid_request"),
    ],
)
def test_bad_questions(alpha: httpx2.Client, route: str, body: dict[str, Any], wanted: str) -> None:
    sent(alpha, "g", "facts.tsv", FACTS)
    answer = alpha.post(f"/v1/graphs/g/{route}", json=body)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"]["code"] == wanted


def test_the_document_describes_both_kinds_of_body(alpha: httpx2.Client) -> None:
    paths = alpha.get("/openapi.json").json()["paths"]
    for path in ("/v1/graphs", "/v1/graphs/{name}/triples", "/v1/indexes/{name}/documents"):
        content = paths[path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
        assert "$ref" not in str(content)
