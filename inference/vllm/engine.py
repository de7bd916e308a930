"""The engine over a vLLM server of its own.

Not verified: a GPU.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from inference.engine import Capability, Engine, OpenAIConfig, VLLMConfig
from inference.models import resolve
from inference.openai.connection import Address
from inference.openai.engine import OpenAIEngine
from inference.requests import Chunk, Output, Request, Score
from inference.vllm.server import Server, importable, interpreter


def open_engine(config: VLLMConfig) -> Engine:
    """vLLM inside this process where it can be imported and none is open here, else a server."""
    if importable():
        from inference.vllm.inprocess import InProcessEngine

        engine = InProcessEngine.first(config)
        if engine is not None:
            return engine
    return VLLMEngine.from_config(config)


class VLLMEngine:
    """An `openai` engine and the server it talks to, which lives as long as this engine."""

    def __init__(self, server: Server, client: OpenAIEngine) -> None:
        self.server = server
        self._client = client

    @classmethod
    def from_config(cls, config: VLLMConfig) -> VLLMEngine:
        """Resolve the model, fetching it if needed, start the server and connect."""
        interpreter()  # refused before a model is fetched
        server = Server(config, resolve(config.model))
        options = OpenAIConfig(model=config.model, concurrency=config.concurrency)
        try:
            address = Address(server.url, server.key, "this engine's own server")
            return cls(server, OpenAIEngine.connect(options, address))
        except BaseException:
            server.close()
            raise

    @property
    def model(self) -> str:
        """Name or path the model was resolved from."""
        return self._client.model

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._client.context_length

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the server was found to do, and the prefix cache it was started with."""
        return self._client.capabilities | {Capability.PREFIX_REUSE}

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Outputs in the order of the requests; one bad request refuses all, computing none."""
        return self._client.generate(requests)

    def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Chunks as they are produced; closing the iterator aborts the request."""
        return self._client.stream(request)

    def score(self, request: Request, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Natural-log probabilities of each continuation after the request's prompt."""
        return self._client.score(request, continuations)

    def count_tokens(self, request: Request) -> int:
        """Number of prompt tokens the request will cost, before any truncation."""
        return self._client.count_tokens(request)

    def abort(self, request_id: str) -> bool:
        """Close the stream of a running request; False if it is not running."""
        return self._client.abort(request_id)

    def close(self) -> None:
        """Cancel what is running, and end the server."""
        self._client.close()
        self.server.close()
