"""Runs on a server: submitted once, followed whatever breaks in between, and read back typed."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack

import httpx2

from api.agents.agent import CONCURRENCY, Item
from api.agents.results import AgentResult, AsyncEvents, answers_of
from api.client.errors import Busy, ServiceError
from api.client.records import RunRecord, event_of
from api.client.wire import Wire
from workflows.events import Event, RunFinished, TextDelta, TokensProduced


class RunOptions(TypedDict, total=False):
    """How a run is to be done: names of what the server has, seed, limits, place in the queue."""

    index: str | None
    graph: str | None
    engine: Literal["native", "openai", "vllm"] | None
    model: str | None
    seed: int
    budget: Mapping[str, float] | None
    priority: Literal["high", "normal", "low"]
    max_attempts: int


class AsyncClient:
    """A client for one event loop: `async with AsyncClient(url, key) as client`.

    `timeout` is the longest silence in seconds, `retries` how often a request is sent again that
    a busy or restarting server did not take. Raises ServiceError and its kin.
    """

    def __init__(
        self, base_url: str, key: str = "", *, timeout: float = 60.0, retries: int = 6
    ) -> None:
        self._wire = Wire(base_url, key, timeout=timeout, retries=retries)

    @property
    def base_url(self) -> str:
        """Where the server is, without /v1."""
        return self._wire.base_url

    async def run(self, workflow: str, inputs: Item, **options: Unpack[RunOptions]) -> AgentResult:
        """Run to the end (or to a question, or the budget) and return the result.

        A cancelled wait cancels the run on the server too.
        """
        result: AgentResult | None = None
        async with aclosing(self.stream(workflow, inputs, **options)) as events:
            async for event in events:
                result = event if isinstance(event, AgentResult) else None
        assert result is not None, "a stream ends with the result"
        return result

    async def stream(
        self, workflow: str, inputs: Item, **options: Unpack[RunOptions]
    ) -> AsyncEvents:
        """Events as the server tells them, and last the result.

        Closing the iterator cancels the run on the server; `events` follows one without that.
        """
        run = await self.submit(workflow, inputs, **options)
        async with aclosing(self._to_the_end(run.id)) as events:
            async for event in events:
                yield event

    async def batch(
        self,
        workflow: str,
        items: Iterable[Item],
        *,
        concurrency: int = CONCURRENCY,
        **options: Unpack[RunOptions],
    ) -> list[AgentResult]:
        """Results in the order of the items, `concurrency` runs at a time.

        An item that the server refuses is a result with that error; the others go on.
        """
        places = asyncio.Semaphore(concurrency)

        async def one(item: Item) -> AgentResult:
            async with places:
                try:
                    return await self.run(workflow, item, **options)
                except ServiceError as error:
                    return _refused(workflow, error)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
        return [task.result() for task in tasks]

    async def submit(
        self,
        workflow: str,
        inputs: Item,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[RunOptions],
    ) -> RunRecord:
        """Hand a run in; once this returns, it survives any kill of the server.

        `inputs` is a mapping, or the question alone. The key, made up if left out, keeps a
        request that is sent again from running twice; the same key with another order raises
        Conflict.
        """
        body = {"workflow": workflow, "inputs": _inputs(inputs), **options}
        key = idempotency_key or secrets.token_hex(16)
        return RunRecord.of(
            await self._wire.call(
                "POST",
                "/v1/runs",
                json={name: value for name, value in body.items() if value is not None},
                headers={"Idempotency-Key": key},
                repeatable=True,
            )
        )

    async def get(self, run_id: str) -> RunRecord:
        """A run as it stands; raises NotFound."""
        return RunRecord.of(await self._wire.call("GET", f"/v1/runs/{run_id}"))

    async def runs(self, *, state: str | None = None) -> AsyncGenerator[RunRecord, None]:
        """Your runs, newest first, without their results."""
        cursor: str | None = None
        while True:
            page = await self._wire.call(
                "GET", "/v1/runs", query={"state": state, "cursor": cursor}
            )
            for record in page["data"]:
                yield RunRecord.of(record)
            cursor = page["next"]
            if cursor is None:
                return

    async def cancel(self, run_id: str) -> RunRecord:
        """End a run; raises Conflict where it has ended already."""
        return RunRecord.of(await self._wire.call("POST", f"/v1/runs/{run_id}/cancel"))

    async def retry(self, run_id: str) -> RunRecord:
        """Queue a failed run again."""
        return RunRecord.of(await self._wire.call("POST", f"/v1/runs/{run_id}/retry"))

    async def resume(
        self,
        run: AgentResult | RunRecord | str,
        answers: Any = None,
        *,
        budget: Mapping[str, float] | None = None,
    ) -> AgentResult:
        """Go on with a run that waits or was stopped by its budget, to its next rest.

        `answers` maps the ids of what was asked to answers; anything else answers the only one.
        """
        run_id = _id(run)
        after = await self._last_event(run_id)
        asks = (await self.get(run_id)).asks
        given = answers_of(run_id, asks, answers)
        body = {"answers": given, "budget": dict(budget) if budget else None}
        await self._wire.call("POST", f"/v1/runs/{run_id}/resume", json=body)
        return await self._result(run_id, after)

    async def wait(self, run: RunRecord | str) -> AgentResult:
        """The result of a run when it rests; a cancelled wait leaves the run alone."""
        return await self._result(_id(run), "0")

    async def events(self, run: RunRecord | str, after: str = "0") -> AsyncGenerator[Event, None]:
        """What a run did and does until it rests; a broken connection is taken up again."""
        async with aclosing(self._follow(_id(run), after)) as told:
            async for _, event in told:
                yield event

    async def request(self, method: str, path: str, **body: Any) -> Any:
        """Any other route: the decoded answer, with the same errors and retries.

        `body` is `json`, or `files` and `data` of a form; `query` holds parameters. A POST is sent
        again after a broken connection only if it is `repeatable`.
        """
        return await self._wire.call(method, path, **body)

    async def close(self) -> None:
        """Close the connections; runs on the server go on."""
        await self._wire.close()

    async def __aenter__(self) -> AsyncClient:
        """The client itself."""
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Close it."""
        await self.close()

    async def _to_the_end(self, run_id: str) -> AsyncEvents:
        """Events and the result; whoever leaves before cancels the run."""
        trace: list[Event] = []
        ended = False
        try:
            async with aclosing(self._follow(run_id, "0")) as told:
                async for _, event in told:
                    _note(trace, event)
                    yield event
            ended = True
            result = (await self.get(run_id)).result(trace)
            yield RunFinished(result.record)
            yield replace(result, trace=(*trace, RunFinished(result.record)))
        except (GeneratorExit, asyncio.CancelledError):
            if not ended:
                await _without_fail(self.cancel(run_id))
            raise

    async def _result(self, run_id: str, after: str) -> AgentResult:
        trace: list[Event] = []
        async with aclosing(self._follow(run_id, after)) as told:
            async for _, event in told:
                _note(trace, event)
        return (await self.get(run_id)).result(trace)

    async def _last_event(self, run_id: str) -> str:
        """Where the events of a resting run stand, so that what follows can be told apart."""
        last = "0"
        async with aclosing(self._follow(run_id, last)) as told:
            async for seen, _ in told:
                last = seen
        return last

    async def _follow(self, run_id: str, after: str) -> AsyncGenerator[tuple[str, Event], None]:
        """Ids and events until the server says that this is the end."""
        tries = 0
        while True:
            broken: Exception | None = None
            try:
                async with self._wire.events(f"/v1/runs/{run_id}/events", after) as source:
                    async for sent in source:
                        tries = 0
                        if sent.event == "end":
                            return
                        after = sent.id or after
                        if sent.data:  # else it only says how long to wait
                            yield after, event_of(json.loads(sent.data))
            except (httpx2.TransportError, Busy) as error:
                broken = error
            if tries >= self._wire.retries:
                raise broken if isinstance(broken, Busy) else self._wire.unreachable(broken)
            await self._wire.pause(tries, broken.retry_after if isinstance(broken, Busy) else None)
            tries += 1


def _note(trace: list[Event], event: Event) -> None:
    if not isinstance(event, TextDelta | TokensProduced):
        trace.append(event)


def _inputs(item: Item) -> dict[str, Any]:
    return {"question": item} if isinstance(item, str) else dict(item)


def _id(run: AgentResult | RunRecord | str) -> str:
    if isinstance(run, AgentResult):
        return run.run_id
    return run.id if isinstance(run, RunRecord) else run


def _refused(workflow: str, error: ServiceError) -> AgentResult:
    return AgentResult.of(
        {
            "run_id": "",
            "workflow": workflow,
            "status": "failed",
            "outputs": {},
            "steps": [],
            "usage": {},
            "error": {"code": error.code, "message": str(error)},
        }
    )


async def _without_fail(request: Any) -> None:
    """Do it though the caller is being cancelled; one that has ended cannot be ended again."""
    task = asyncio.ensure_future(request)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    with suppress(ServiceError):
        task.result()
