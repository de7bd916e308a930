"""An engine that speaks recorded turns, so that control flow is tested turn by turn.

It implements the whole Engine contract; what a model would say is the test's input.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from inference import (
    Capability,
    Chunk,
    EngineConfig,
    FinishReason,
    Output,
    Request,
    Score,
    Stats,
    Usage,
)


class ReplayConfig(EngineConfig):
    """Configuration under which a test adopts its engine."""

    provides = frozenset({Capability.CHAT, Capability.STREAM})


@dataclass
class ReplayEngine:
    """Says `turns` one after the other, then the last one for ever; a token is a word."""

    turns: Sequence[str]
    seconds: float = 0.0
    requests: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    model: str = "replay"
    context_length: int = 10**6
    capabilities: frozenset[Capability] = ReplayConfig.provides

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        return [self._say(request) for request in requests]

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        output = self._say(request)
        yield Chunk(output.text, output.token_ids, output)

    def score(self, request: Request, continuations: Sequence[object]) -> list[Score]:
        raise TypeError("a replay has no probabilities")

    def count_tokens(self, request: Request) -> int:
        return len(self.heard(request).split())

    def abort(self, request_id: str) -> bool:
        self.aborted.append(request_id)
        return True

    def close(self) -> None:
        self.turns = ()

    @staticmethod
    def heard(request: Request) -> str:
        """Everything the request says."""
        if request.messages is not None:
            return "\n".join(f"{m.role}: {m.content}" for m in request.messages)
        return request.prompt or ""

    def _say(self, request: Request) -> Output:
        turn = self.turns[min(len(self.requests), len(self.turns) - 1)]
        self.requests.append(request)
        until = time.monotonic() + self.seconds
        while time.monotonic() < until and request.id not in self.aborted:
            time.sleep(0.005)
        for stop in request.sampling.stop:
            turn = turn.split(stop)[0]
        words = turn.split(" ")[: request.sampling.max_tokens]
        reason = FinishReason.STOP if len(words) == len(turn.split(" ")) else FinishReason.LENGTH
        if request.id in self.aborted:
            reason = FinishReason.ABORTED
        usage = Usage(self.count_tokens(request), 0, len(words), 1, 0, self.seconds)
        ids = tuple(range(len(words)))
        return Output(request.id, " ".join(words), ids, reason, usage, Stats())
