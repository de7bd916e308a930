"""A small server on loopback that lists its models and answers the rest as a test says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "sk-a-key-that-nobody-may-see"
MODELS = {"data": [{"id": "small"}, {"id": "large", "max_model_len": 64}]}
PIECE = {"choices": [{"index": 0, "text": "half", "delta": {"content": "half"}}]}

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Lists its models, and answers the rest as the test says."""

    server: Naughty

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("Authorization"))
        self.server.listing(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.keys() & {"response_format", "logprobs"} and self.server.probes:
            self.server.probed.append(body)
            self.server.probes(self)
            return
        self.server.times.append(time.monotonic())
        self.server.answers.pop(0)(self)

    def reply(self, status: int, body: object, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def pieces(self, *objects: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for one in objects:
            self.wfile.write(f"data: {json.dumps(one)}\n\n".encode())
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Standard error stays clean."""


class Naughty(ThreadingHTTPServer):
    """Keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.answers: list[Answer] = []
        self.probed: list[dict[str, Any]] = []
        self.probes: Answer | None = lambda handler: fails(400)(handler)
        self.listing: Answer = lambda handler: handler.reply(200, MODELS)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def misbehaving() -> Iterator[Naughty]:
    """A running server."""
    with Naughty() as naughty:
        thread = Thread(target=naughty.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield naughty
        finally:
            naughty.shutdown()
            thread.join()


def finish(handler: Handler) -> None:
    handler.pieces(PIECE, {"choices": [{"index": 0, "finish_reason": "stop"}]})


def fails(status: int, message: str = "out of order", **headers: str) -> Answer:
    error = {"error": {"message": message, "code": None}}
    return lambda handler: handler.reply(status, error, **headers)


def completes(text: str, **choice: object) -> Answer:
    """An answer of either endpoint that was not streamed."""
    message = {"message": {"content": text}, "text": text}
    return lambda handler: handler.reply(200, {"choices": [{**message, **choice}]})
