"""Indexes over HTTP: uploads, searches, deletion, other tenants, hostile names and files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.http.keys import Scope
from tests.api.http.site import Site

DOCUMENTS = [
    {"id": "fox", "title": "Fox", "text": "The fox lives in Vessmark.", "metadata": {"legs": 4}},
    {"id": 7, "text": "The owl lives in Dorn.", "metadata": {"legs": 2}},
]
Files = list[tuple[str, tuple[str, bytes]]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RAGWRIGHT_HOME of this module; models stay where they are cached."""
    from inference.models import models_home

    models = models_home()
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("home")
    (folder / "models").symlink_to(models, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGWRIGHT_HOME", str(folder))
        yield folder


@pytest.fixture
def alpha(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.alpha) as client:
        client.timeout = 120
        yield client
        for entry in client.get("/v1/indexes").json()["data"]:
            client.delete(f"/v1/indexes/{entry['name']}")


@pytest.fixture
def beta(site: Site) -> Iterator[httpx2.Client]:
    with site.client(site.beta) as client:
        client.timeout = 120
        yield client


def made(client: httpx2.Client, name: str = "animals") -> dict[str, Any]:
    answer = client.post("/v1/indexes", json={"name": name, "documents": DOCUMENTS})
    assert answer.status_code == 201, answer.text
    entry: dict[str, Any] = answer.json()
    return entry


def code(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    found: str = answer.json()["error"]["code"]
    return found


def file(name: str, content: str | bytes) -> Files:
    return [("files", (name, content.encode() if isinstance(content, str) else content))]


def test_documents_are_indexed_added_to_searched_and_deleted(alpha: httpx2.Client) -> None:
    entry = made(alpha)
    assert (entry["state"], entry["version"], entry["counts"]["documents"]) == ("ready", 1, 2)
    assert alpha.get("/v1/indexes/animals").json() == entry
    assert alpha.get("/v1/indexes").json() == {"data": [entry]}
    (result,) = alpha.post(
        "/v1/indexes/animals/search", json={"query": "Where does the fox live?", "k": 1}
    ).json()["results"]
    (hit,) = result["hits"]
    assert (result["id"], hit["document_id"], hit["passage_id"]) == ("0", "fox", "fox#0")
    assert hit["text"] == DOCUMENTS[0]["text"][hit["start"] : hit["end"]]  # type: ignore[index]
    assert {"title", "source", "score", "metadata", "ranks"} <= set(hit)
    more = alpha.post(
        "/v1/indexes/animals/documents",
        files=file("notes/elk.md", "# Elk\n\nThe elk roams in Tarn.\n") + file("h.txt", "A hare."),
    )
    assert (more.status_code, more.json()["counts"]["documents"]) == (200, 4)
    search = {"queries": ["elk", "hare"], "k": 1, "retriever": "bm25"}
    found = alpha.post("/v1/indexes/animals/search", json=search).json()["results"]
    assert [result["hits"][0]["document_id"] for result in found] == ["notes/elk.md", "h.txt"]
    where = {"query": "who lives where", "where": {"legs": [2, 3]}}
    (result,) = alpha.post("/v1/indexes/animals/search", json=where).json()["results"]
    assert [hit["document_id"] for hit in result["hits"]] == ["7"]
    assert alpha.delete("/v1/indexes/animals").status_code == 204
    assert code(alpha.get("/v1/indexes/animals"), 404) == "not_found"
    assert code(alpha.delete("/v1/indexes/animals"), 404) == "not_found"
    assert alpha.get("/v1/indexes").json() == {"data": []}


def test_another_tenant_finds_nothing(
    site: Site, alpha: httpx2.Client, beta: httpx2.Client
) -> None:
    made(alpha, "secret")
    calls = [
        beta.get("/v1/indexes/secret"),
        beta.delete("/v1/indexes/secret"),
        beta.post("/v1/indexes/secret/restart"),
        beta.post("/v1/indexes/secret/search", json={"query": "fox"}),
        beta.post("/v1/indexes/secret/documents", json={"documents": DOCUMENTS}),
    ]
    never = beta.get("/v1/indexes/other")
    for answer in calls:
        assert code(answer, 404) == "not_found"
        message = answer.json()["error"]["message"]
        assert message.replace("secret", "other") == never.json()["error"]["message"]
    assert beta.get("/v1/indexes").json() == {"data": []}
    made(beta, "secret")
    assert beta.delete("/v1/indexes/secret").status_code == 204
    assert alpha.get("/v1/indexes/secret").json()["state"] == "ready"
    run = {"workflow": "naive_rag", "inputs": {"question": "x"}, "index": "secret"}
    assert code(beta.post("/v1/runs", json=run), 404) == "not_found"


def test_scopes(site: Site, alpha: httpx2.Client) -> None:
    made(alpha)
    with site.client(site.key("alpha", Scope.READ)) as reader:
        assert reader.post("/v1/indexes/animals/search", json={"query": "fox"}).status_code == 200
        assert code(reader.delete("/v1/indexes/animals"), 403) == "missing_scope"
        assert code(reader.post("/v1/indexes", json={}), 403) == "missing_scope"
    with site.client(site.key("alpha", Scope.WRITE)) as writer:
        search = writer.post("/v1/indexes/animals/search", json={"query": "fox"})
        assert code(search, 403) == "missing_scope"
    with site.client() as nobody:
        assert nobody.get("/v1/indexes").status_code == 401


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("bad.txt", b"fine\xff", "bad.txt: not UTF-8"),
        ("bad.pdf", b"%PDF-1.4 nothing", "bad.pdf: not a readable PDF"),
        ("bad.jsonl", b'{"id": "a", "text": NaN}', "bad.jsonl:1: not a JSON row"),
        ("bad.jsonl", b'{"a":' * 3_000, "bad.jsonl:1: not a JSON row"),
        ("bad.html", b"<p></p>", "bad.html: no readable text"),
        ("bad.exe", b"MZ", "bad.exe: the format '.exe' is not supported"),
        ("../../up.txt", b"text", "the file name '../../up.txt' must be"),
        ("/etc/passwd.txt", b"text", "the file name '/etc/passwd.txt' must be"),
        ("a\\..\\b.txt", b"text", "the file name"),
    ],
)
def test_files_that_cannot_be_used_are_400_with_their_place(
    alpha: httpx2.Client, home: Path, name: str, content: bytes, place: str
) -> None:
    answer = alpha.post("/v1/indexes", data={"name": "bad"}, files=file(name, content))
    assert code(answer, 400) == "bad_upload"
    message = answer.json()["error"]["message"]
    assert message.startswith(place) and str(home) not in message
    assert code(alpha.get("/v1/indexes/bad"), 404) == "not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "body.documents"),
        ({"name": "x", "documents": []}, "body.documents"),
        ({"name": "../x", "documents": DOCUMENTS}, "body.name"),
        ({"name": "x", "documents": [{"id": "a", "text": ""}]}, "body.documents.0.text"),
        ({"name": "x", "documents": [{"id": True, "text": "t"}]}, "body.documents.0.id"),
        ({"name": "x", "documents": DOCUMENTS, "more": 1}, "body.more"),
        ([], "body"),
        ("null", "body"),
    ],
)
def test_bad_bodies(alpha: httpx2.Client, body: Any, param: str) -> None:
    answer = alpha.post("/v1/indexes", json=body)
    assert code(answer, 422) == "invalid_request"
    assert answer.json()["error"]["param"].startswith(param)


def test_bodies_of_other_kinds(alpha: httpx2.Client) -> None:
    def post(content: bytes, kind: str) -> httpx2.Response:
        return alpha.post("/v1/indexes", content=content, headers={"Content-Type": kind})

    assert code(post(b"x", "text/plain"), 415) == "unsupported_media_type"
    assert code(post(b'{"name": NaN}', "application/json"), 400) == "invalid_json"
    assert code(post(b'"\xff"', "application/json"), 400) == "invalid_json"
    assert post(b"x", "multipart/form-data").status_code == 400
    assert post(b"--b\r\nbroken", "multipart/form-data; boundary=b").status_code in (400, 422)
    twice = alpha.post("/v1/indexes", json={"name": "x", "documents": DOCUMENTS[:1] * 2})
    assert code(twice, 400) == "bad_upload"
    extra = alpha.post("/v1/indexes", data={"name": "x", "y": "z"}, files=file("a.txt", "a"))
    assert code(extra, 422) == "invalid_request"
    unnamed = alpha.post("/v1/indexes", files=file("a.txt", "a"))
    assert unnamed.json()["error"]["param"] == "name"
    none = alpha.post("/v1/indexes", data={"name": "x"}, files={"other": ("a.txt", b"a")})
    assert code(none, 422) == "invalid_request"
    assert alpha.get("/v1/indexes").json() == {"data": []}


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"query": " "},
        {"query": "a", "queries": ["b"]},
        {"queries": []},
        {"query": "a", "k": 0},
        {"query": "a", "k": 101},
        {"query": "a", "retriever": "hybird"},
        {"query": "a", "where": {"nothing": 1}},
        {"query": "word " * 790},
        {"query": "a" * 4_001},
    ],
)
def test_bad_searches(alpha: httpx2.Client, search: dict[str, Any]) -> None:
    made(alpha)
    answer = alpha.post("/v1/indexes/animals/search", json=search)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["message"]


def test_a_name_is_taken_once_and_additions_at_once_are_all_kept(
    site: Site, alpha: httpx2.Client
) -> None:
    made(alpha)
    again = alpha.post("/v1/indexes", json={"name": "animals", "documents": DOCUMENTS})
    assert code(again, 409) == "name_taken"

    def add(number: int) -> int:
        body = {"documents": [{"id": f"n{number}", "text": f"Note number {number}."}]}
        with site.client(site.alpha) as client:
            return client.post("/v1/indexes/animals/documents", json=body, timeout=120).status_code

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(add, range(4))) == [200] * 4
    assert alpha.get("/v1/indexes/animals").json()["counts"]["documents"] == 6


def test_a_large_upload_is_built_behind_its_answer(alpha: httpx2.Client) -> None:
    text = "\n".join(
        json.dumps({"id": str(n), "text": f"Entry {n}. " + "x" * 60_000}) for n in range(18)
    )
    answer = alpha.post("/v1/indexes", data={"name": "large"}, files=file("a.jsonl", text))
    assert (answer.status_code, answer.json()["state"]) == (202, "building")
    search = alpha.post("/v1/indexes/large/search", json={"query": "x"})
    assert code(search, 409) == "not_ready"
    deadline = time.monotonic() + 120
    while (entry := alpha.get("/v1/indexes/large").json())["state"] == "building":
        assert time.monotonic() < deadline, entry
        time.sleep(0.1)
    assert (entry["state"], entry["counts"]["documents"]) == ("ready", 18), entry
