"""The client for callers with and without an event loop."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from api.agents.agent import CONCURRENCY, Item
from api.agents.background import BackgroundLoop, Put
from api.agents.results import AgentResult, AsyncEvents, Events
from api.client.records import RunRecord
from api.client.remote import AsyncClient, RunOptions
from api.client.shelves import Shelf, Workflows
from workflows.events import Event

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")


class Client:
    """Runs workflows on a server: `Client("http://127.0.0.1:8000", key).run("auto_rag", "...")`.

    `run`, `stream`, `arun`, `astream` and `batch` do what those of an agent do, and give the same
    results; a run is named by its workflow, and `inputs` is a mapping, or the question alone. The
    options are names of what the server has (`index`, `graph`, `engine`, `model`), `seed`,
    `budget`, `priority` ("high", "normal", "low") and `max_attempts`.

    `timeout` is the longest silence in seconds; `retries` is how often a request is sent again
    that a busy or restarting server did not take. Requests that hand a run in carry an
    idempotency key, so that none runs twice; streams of events are taken up again where they
    broke. `key` goes to this server only.

    `indexes`, `graphs` and `workflows` are what you keep on the server under names.

    Errors: ServiceError and its kin (`api.client`), each with `code`, `message`, `status` and
    `request_id`: BadRequest, Forbidden, NotFound, Conflict, Busy, ServerFault, Unreachable. A run
    that failed is a result with `status` and `error`; `raise_if_failed()` makes it an exception.
    """

    def __init__(
        self, base_url: str, key: str = "", *, timeout: float = 60.0, retries: int = 6
    ) -> None:
        self._remote = AsyncClient(base_url, key, timeout=timeout, retries=retries)
        self._loop = BackgroundLoop(f"client of {self._remote.base_url}")
        self._end = weakref.finalize(self, _shut, self._loop, self._remote)
        loop, remote = self._loop, self._remote

        def call(method: str, path: str, **body: Any) -> Any:
            return loop.run(remote.request(method, path, **body))

        self.indexes = Shelf(call, "/v1/indexes", "documents")
        self.graphs = Shelf(call, "/v1/graphs", "triples")
        self.workflows = Workflows(call)

    def run(self, workflow: str, inputs: Item, **options: Unpack[RunOptions]) -> AgentResult:
        """Run to the end (or to a question, or the budget); Ctrl-C cancels it on the server too."""
        return self._loop.run(self._remote.run(workflow, inputs, **options))

    async def arun(self, workflow: str, inputs: Item, **options: Unpack[RunOptions]) -> AgentResult:
        """As `run`; cancelling the await cancels the run on the server."""
        return await self._loop.arun(self._remote.run(workflow, inputs, **options))

    def stream(self, workflow: str, inputs: Item, **options: Unpack[RunOptions]) -> Events:
        """Events as the server tells them, and last the result; closing it cancels the run."""
        return self._loop.stream(_put(self._remote.stream(workflow, inputs, **options)))

    def astream(self, workflow: str, inputs: Item, **options: Unpack[RunOptions]) -> AsyncEvents:
        """As `stream`, on the caller's loop."""
        return self._loop.astream(_put(self._remote.stream(workflow, inputs, **options)))

    def batch(
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
        remote = self._remote
        return self._loop.run(remote.batch(workflow, items, concurrency=concurrency, **options))

    async def abatch(
        self,
        workflow: str,
        items: Iterable[Item],
        *,
        concurrency: int = CONCURRENCY,
        **options: Unpack[RunOptions],
    ) -> list[AgentResult]:
        """As `batch`; cancelling the await cancels every run of it."""
        remote = self._remote
        return await self._loop.arun(
            remote.batch(workflow, items, concurrency=concurrency, **options)
        )

    def submit(
        self,
        workflow: str,
        inputs: Item,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[RunOptions],
    ) -> RunRecord:
        """Hand a run in and return at once; from then on it survives any kill of the server.

        The same key with the same order gives the same run, with another one it raises Conflict.
        """
        return self._loop.run(
            self._remote.submit(workflow, inputs, idempotency_key=idempotency_key, **options)
        )

    def get(self, run_id: str) -> RunRecord:
        """A run as it stands; raises NotFound."""
        return self._loop.run(self._remote.get(run_id))

    def runs(self, *, state: str | None = None) -> Generator[RunRecord, None, None]:
        """Your runs, newest first, without their results; `state` names one of `RunRecord`."""
        return self._loop.stream(_put(self._remote.runs(state=state)))

    def wait(self, run: RunRecord | str) -> AgentResult:
        """The result of a run when it rests."""
        return self._loop.run(self._remote.wait(run))

    def events(self, run: RunRecord | str) -> Generator[Event, None, None]:
        """What a run did and does until it rests; closing the iterator leaves the run alone."""
        return self._loop.stream(_put(self._remote.events(run)))

    def cancel(self, run_id: str) -> RunRecord:
        """End a run; raises Conflict where it has ended already."""
        return self._loop.run(self._remote.cancel(run_id))

    def retry(self, run_id: str) -> RunRecord:
        """Queue a failed run again."""
        return self._loop.run(self._remote.retry(run_id))

    def resume(
        self,
        run: AgentResult | RunRecord | str,
        answers: Any = None,
        *,
        budget: Mapping[str, float] | None = None,
    ) -> AgentResult:
        """Go on with a run that waits for answers or was stopped by its budget, to its next rest.

        `answers` maps the ids of what was asked to answers; anything else answers the only one.
        """
        return self._loop.run(self._remote.resume(run, answers, budget=budget))

    def request(self, method: str, path: str, **body: Any) -> Any:
        """Any other route of the server; see `AsyncClient.request`."""
        return self._loop.run(self._remote.request(method, path, **body))

    def close(self) -> None:
        """Close the connections; what waits here is cancelled. Harmless when repeated."""
        self._end()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Where the server is; never the key."""
        return f"<Client of {self._remote.base_url}>"


def _put(source: AsyncGenerator[T, None]) -> Any:
    """What feeds an iterator of the background loop from an async one."""

    async def work(put: Put[T]) -> None:
        try:
            async for item in source:
                put(item)
        finally:
            await source.aclose()

    return work


def _shut(loop: BackgroundLoop, remote: AsyncClient) -> None:
    loop.close(remote.close)
