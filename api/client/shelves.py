"""What you keep on a server: indexes, graphs and workflows, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from api.client.errors import ServerFault
from retrieval import Hit, Passage

Call = Callable[..., Any]
"""A request of the client: method, path, and what `Wire.call` takes."""

LOOK_SECONDS = 0.2
"""Time between two looks at a build."""


class Shelf:
    """Indexes or graphs; an entry tells `name`, `state`, `version`, `counts` and `bytes`."""

    def __init__(self, call: Call, path: str, rows: str) -> None:
        self._call = call
        self._path = path
        self._rows = rows

    def list(self) -> list[dict[str, Any]]:
        """Entries of all that is there, by name."""
        found: list[dict[str, Any]] = self._call("GET", self._path)["data"]
        return found

    def get(self, name: str) -> dict[str, Any]:
        """The entry of one; raises NotFound."""
        entry: dict[str, Any] = self._call("GET", f"{self._path}/{name}")
        return entry

    def create(
        self,
        name: str,
        *,
        files: Iterable[str | Path] = (),
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """Make one of files or of rows, and return its entry when it is built.

        Rows of an index are documents (`id`, `title`, `text`, `metadata`), of a graph triples
        (`head`, `relation`, `tail`, `source`). Raises Conflict where the name is taken, and
        ServerFault where the build fails.
        """
        return self._give(self._path, name, files, rows, {"name": name})

    def add(
        self,
        name: str,
        *,
        files: Iterable[str | Path] = (),
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """Add files or rows to one, and return its entry when searches see them."""
        return self._give(f"{self._path}/{name}/{self._rows}", name, files, rows, {})

    def search(self, name: str, query: str, k: int = 5, **options: Any) -> Sequence[Hit]:
        """The best `k` hits, best first; options are those of the route (`where`, `hops` ...)."""
        body = {"query": query, "k": k, **options}
        [result] = self._call("POST", f"{self._path}/{name}/search", json=body)["results"]
        return [_hit(hit) for hit in result["hits"]]

    def delete(self, name: str) -> None:
        """Delete one; raises NotFound."""
        self._call("DELETE", f"{self._path}/{name}")

    def _give(
        self,
        path: str,
        name: str,
        files: Iterable[str | Path],
        rows: Sequence[Mapping[str, Any]],
        named: Mapping[str, str],
    ) -> dict[str, Any]:
        given = [("files", (Path(file).name, Path(file).read_bytes())) for file in files]
        if bool(given) == bool(rows):
            raise ValueError("give either files or rows")
        if given:
            entry = self._call("POST", path, files=given, data=dict(named))
        else:
            entry = self._call("POST", path, json={**named, self._rows: [*map(dict, rows)]})
        while entry["state"] == "building":
            time.sleep(LOOK_SECONDS)
            entry = self.get(name)
        if entry["state"] == "failed":
            error = entry.get("error") or {"code": "build_failed", "message": "no reason given"}
            raise ServerFault(error["code"], f"{name!r} was not built: {error['message']}")
        built: dict[str, Any] = entry
        return built


class Workflows:
    """Workflows that runs can name: the shipped ones and your own."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def list(self) -> list[dict[str, Any]]:
        """Name, description and origin of each."""
        found: list[dict[str, Any]] = self._call("GET", "/v1/workflows")["data"]
        return found

    def get(self, name: str) -> dict[str, Any]:
        """One with its text and the JSON Schema of its inputs; raises NotFound."""
        details: dict[str, Any] = self._call("GET", f"/v1/workflows/{name}")
        return details

    def validate(self, text: str) -> dict[str, Any]:
        """Whether a workflow file is `valid`, and all of its `faults`."""
        report: dict[str, Any] = self._call("POST", "/v1/workflows/validate", json={"text": text})
        return report

    def upload(self, name: str, text: str) -> dict[str, Any]:
        """Keep one under a name, in place of your own of that name; raises BadRequest, Conflict."""
        body = {"name": name, "text": text}
        details: dict[str, Any] = self._call("POST", "/v1/workflows", json=body, repeatable=True)
        return details

    def delete(self, name: str) -> None:
        """Delete one of your own; raises NotFound."""
        self._call("DELETE", f"/v1/workflows/{name}")


def _hit(record: Mapping[str, Any]) -> Hit:
    passage = Passage(
        record["passage_id"],
        record["document_id"],
        record["title"],
        record["source"],
        record["start"],
        record["end"],
        record["text"],
        record.get("metadata", {}),
    )
    return Hit(passage, record["score"], record.get("ranks", {}))
