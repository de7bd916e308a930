"""Hub ids, against a hub that speaks the protocol on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.inference.tiny import checkpoint

COMMIT = "a" * 40


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves repositories: 'owner/name' -> {path: bytes}."""

    repositories: dict[str, dict[str, bytes]]
    served: list[str]


class Pages(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            name = "/".join(path.split("/")[2:4])
            files = self.server.repositories.get(name)
            listing: object = {"id": name, "sha": COMMIT}
            if "/tree/" in path:
                listing = [
                    {"type": "file", "path": f, "size": len(data), "oid": digest(data)}
                    for f, data in (files or {}).items()
                ]
            self._send(json.dumps(listing).encode() if files is not None else None, body)
            return
        owner, name, _, _, file = path.split("/", 4)
        if body:
            self.server.served.append(file)
        self._send(self.server.repositories[f"{owner}/{name}"].get(file), body)

    def _send(self, data: bytes | None, body: bool) -> None:
        self.send_response(200 if data is not None else 404)
        data = data or b""
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{digest(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if not data:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = checkpoint(tmp_path / "source")
    good = {p.name: p.read_bytes() for p in folder.iterdir()}
    server = Hub(("127.0.0.1", 0), Pages)
    server.served = []
    server.repositories = {
        "acme/tiny": good
        | {"run_me.py": b"raise SystemExit", "model.bin": b"x", "onnx/model.safetensors": b"x"},
        "acme/pickled": {"config.json": good["config.json"], "pytorch_model.bin": b"x"},
    }
    worker = threading.Thread(target=server.serve_forever)
    worker.start()
    yield server
    server.shutdown()
    server.server_close()
    worker.join()


def ragwright(home: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {
        "RAGWRIGHT_HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", "from api.cli import main; main()", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_repository_is_fetched_without_what_could_run(hub: Hub, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    done = ragwright(tmp_path, endpoint, "models", "pull", "acme/tiny", "--json")
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert (entry["name"], entry["cached"]) == ("acme/tiny", True)
    folder = Path(entry["path"])
    assert (folder / "model.safetensors").read_bytes() == (
        hub.repositories["acme/tiny"]["model.safetensors"]
    )
    assert {"run_me.py", "model.bin", "onnx/model.safetensors"}.isdisjoint(hub.served)
    before = len(hub.served)
    again = ragwright(tmp_path, "http://127.0.0.1:9", "models", "pull", "acme/tiny")
    assert (again.returncode, again.stdout.strip()) == (0, str(folder))
    assert len(hub.served) == before


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("acme/nothing", 1, "could not be fetched from the hub"),
        ("acme/pickled", 2, "has no .safetensors file"),
    ],
)
def test_what_a_hub_cannot_give(
    hub: Hub, tmp_path: Path, name: str, status: int, message: str
) -> None:
    done = ragwright(tmp_path, f"http://127.0.0.1:{hub.server_port}", "models", "pull", name)
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "models").glob("acme*"))


def test_no_hub_within_reach(tmp_path: Path) -> None:
    done = ragwright(tmp_path, "http://127.0.0.1:9", "models", "pull", "acme/tiny")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "'acme/tiny' could not be fetched" in last and "--model the path" in last
