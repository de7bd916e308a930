"""The engine over an OpenAI-compatible server, safe from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from inference.engine import Capability, OpenAIConfig
from inference.errors import (
    InferenceInputError,
    PromptTooLong,
    ServerUnavailable,
    Unsupported,
)
from inference.openai.calls import Job, call, check, fit
from inference.openai.connection import Address, Connection
from inference.openai.offers import COMPLETIONS, salt
from inference.openai.server import Profile, address, discover
from inference.openai.tokens import ServerTokens, prompt_ids
from inference.requests import Chunk, FinishReason, Output, Request, Score
from inference.running import Running

if TYPE_CHECKING:
    from inference.grammar.judge import Judge

T = TypeVar("T")


class OpenAIEngine:
    """Engine over one model of a server; requests of one call run side by side."""

    def __init__(self, connection: Connection, profile: Profile, config: OpenAIConfig) -> None:
        self._connection = connection
        self._profile = profile
        self._api = config.api
        self._place = f"server {connection.address.url}"
        self._slots = asyncio.Semaphore(config.concurrency)
        self._running: Running[Job] = Running()

    @classmethod
    def from_config(cls, config: OpenAIConfig) -> OpenAIEngine:
        """Connect, and ask the server about its model."""
        return cls.connect(config, address(config))

    @classmethod
    def connect(cls, config: OpenAIConfig, server: Address) -> OpenAIEngine:
        """Connect to a server whose address and key are known."""
        connection = Connection(server)
        try:
            return cls(connection, connection.run(discover, connection, config), config)
        except BaseException:
            connection.close()
            raise

    @property
    def model(self) -> str:
        """Name the server gives the model."""
        return self._profile.model

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._profile.context_length

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this server was found to do with this model."""
        return self._profile.capabilities

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Outputs in the order of the requests; one bad request refuses all, computing none.

        Where nobody counts tokens (`count_tokens`), only the server finds a prompt too long, and
        the others may have begun; they are cancelled.
        """
        jobs = self._jobs(requests)
        with self._running.admit(jobs):
            return self._connection.run(self._answer, jobs)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Chunks as they are produced; closing the iterator aborts the request."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | None] = asyncio.Queue()
        jobs = await asyncio.to_thread(self._jobs, [request])  # a grammar takes time to compile
        with self._running.admit(jobs):
            jobs[0].emit = lambda chunk: _post(loop, queue, chunk)
            future = self._connection.submit(self._answer, jobs)
            future.add_done_callback(lambda _: _post(loop, queue, None))
            try:
                while (chunk := await queue.get()) is not None:
                    yield chunk
                (output,) = self._connection.result(future)
                yield Chunk("", output=output)
            finally:
                self._connection.signal(jobs[0].stopped)
                await asyncio.wait([asyncio.wrap_future(future)])

    def score(self, request: Request, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Natural-log probabilities of each continuation after the request's prompt.

        A text continuation is tokenised on its own, without special tokens.
        """
        if Capability.SCORE not in self.capabilities:
            raise Unsupported(
                f"{self._place} offers no log-probabilities of a prompt (vLLM does), so it cannot "
                "score; use another engine"
            )
        return self._connection.run(self._score, request, continuations)

    def count_tokens(self, request: Request) -> int:
        """Number of prompt tokens the request will cost, before any truncation.

        Asked of vLLM, counted with the option `tokenizer` elsewhere; raises Unsupported where
        neither is there, because an estimate would make budgets wrong.
        """
        tokens = self._profile.tokens
        if tokens is None:
            raise Unsupported(
                f"{self._place} does not count tokens, which a token budget needs; name the "
                "tokenizer of its model in the option tokenizer"
            )
        return len(self._connection.run(prompt_ids, tokens, request))

    def abort(self, request_id: str) -> bool:
        """Close the stream of a running request; False if it is not running."""
        job = self._running.find(request_id)
        if job is None:
            return False
        self._connection.signal(job.stopped)
        return True

    def close(self) -> None:
        """Cancel what is running and close the connection."""
        self._connection.close()

    def _jobs(self, requests: Sequence[Request]) -> list[Job]:
        """Jobs for all requests, or none; a grammar that cannot be compiled is refused unsent."""
        for request in requests:
            check(self._profile, self._api, request, self._place)
        grammars = [request.grammar for request in requests]
        readers = [
            None if grammar is None else self._judge.matcher(grammar) for grammar in grammars
        ]
        return [Job(*pair) for pair in zip(requests, readers, strict=True)]

    @cached_property
    def _judge(self) -> Judge:
        from inference.grammar.judge import Judge  # loads xgrammar where it is needed

        return Judge()

    async def _answer(self, jobs: list[Job]) -> list[Output]:
        await _together([fit(self._profile, self._api, job, self._place) for job in jobs])
        return await _together([self._run(job) for job in jobs])

    async def _run(self, job: Job) -> Output:
        """One output; an abort or the deadline ends the reading and keeps the text so far."""
        reader = asyncio.ensure_future(self._read(job))
        stopper = asyncio.ensure_future(job.stopped.wait())
        try:
            await asyncio.wait(
                {reader, stopper},
                timeout=job.request.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ended = reader.done()
            reader.cancel()
            stopper.cancel()
            await asyncio.gather(reader, stopper, return_exceptions=True)
        if ended:
            reader.result()
        await asyncio.to_thread(job.judge)
        if ended:
            return job.output(job.reason)
        aborted = job.stopped.is_set()
        return job.output(FinishReason.ABORTED if aborted else FinishReason.DEADLINE)

    async def _read(self, job: Job) -> None:
        async with self._slots:
            path, body = call(self._profile, job)
            async with aclosing(self._connection.stream(path, body)) as chunks:
                async for chunk in chunks:
                    self._take(job, chunk)
        if job.finish is None:
            raise ServerUnavailable(
                f"{self._place} broke off request {job.request.id!r} after {len(job.text)} "
                "characters, without saying why; send it again"
            )

    def _take(self, job: Job, chunk: dict[str, Any]) -> None:
        try:
            job.take(chunk)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ServerUnavailable(
                f"{self._place} answers request {job.request.id!r} with something else than the "
                f"OpenAI protocol ({type(error).__name__}: {error}); correct base_url, or leave "
                "out what the server does not know, such as logprobs"
            ) from None

    async def _score(
        self, request: Request, continuations: Sequence[str | Sequence[int]]
    ) -> list[Score]:
        tokens = self._profile.tokens
        assert isinstance(tokens, ServerTokens), "the capability is declared only with them"
        self._profile.offers.check(request, COMPLETIONS, self._place)
        job = Job(request)
        await fit(self._profile, self._api, job, self._place)
        prompt = job.sent_ids or await prompt_ids(tokens, request)
        room = self.context_length - len(prompt)
        wanted: list[list[int]] = []
        for at, given in enumerate(continuations):
            ids = await tokens.bare(given) if isinstance(given, str) else list(given)
            name = f"continuation {at} of request {request.id!r}"
            if not ids:
                raise InferenceInputError(f"{name} has no tokens; give a text to score")
            if len(ids) >= room:  # the server generates one token, and cannot be told not to
                raise PromptTooLong(
                    f"{name} has {len(ids)} tokens, and the context of {self.context_length} "
                    f"leaves room for {room - 1} after the prompt; shorten one of them"
                )
            wanted.append(ids)
        kept_apart = salt(request.tenant)
        return await _together([self._logprobs(prompt, ids, kept_apart) for ids in wanted])

    async def _logprobs(self, prompt: list[int], ids: list[int], extra: dict[str, Any]) -> Score:
        body = {
            "model": self.model,
            "prompt": [*prompt, *ids],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
            **extra,
        }
        async with self._slots:
            answer = await self._connection.post("/completions", body)
        try:
            rows = answer["choices"][0]["prompt_logprobs"][len(prompt) :]
            pairs = zip(rows, ids, strict=True)
            found = tuple(float(row[str(token)]["logprob"]) for row, token in pairs)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ServerUnavailable(
                f"{self._place} answers without the log-probabilities it was asked for"
            ) from None
        return Score(tuple(ids), found)


def _post(
    loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Chunk | None], item: Chunk | None
) -> None:
    with suppress(RuntimeError):  # the loop was closed; nobody listens any more
        loop.call_soon_threadsafe(queue.put_nowait, item)


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first error cancels the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
