"""A client of an OpenAI-compatible server on an event loop of its own, usable from any thread.

The official client does retries (exponential backoff with jitter, `Retry-After` honoured). What it
would take from OPENAI_* variables is set here, so that no other server is told any of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai

from inference.errors import InferenceError
from inference.openai.failures import translate

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Where a server is, what it is sent as a key, and how patient the client is.

    `key_source` says where the key comes from, for messages; the key is in no `repr`.
    """

    url: str
    key: str = field(default="", repr=False)
    key_source: str = ""
    timeout: float = 120.0
    retries: int = 3

    @property
    def is_local(self) -> bool:
        """True if the host is this machine."""
        return is_loopback(urlsplit(self.url).hostname or "")

    def redact(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, "[key]") if self.key else text


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Connection:
    """Requests to one server; errors arrive as the errors of this package."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai", daemon=True)
        self._closing = threading.Lock()
        self._closed = False
        # A redirect is reported, never followed: the key goes to the given host only.
        self._http = httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=not address.is_local,
            timeout=httpx2.Timeout(address.timeout, connect=min(10.0, address.timeout)),
        )
        unsaid: Any = openai.Omit()
        self._headers: dict[str, Any] = {} if address.key else {"Authorization": unsaid}
        self.client = openai.AsyncOpenAI(
            api_key=address.key,
            admin_api_key="",
            organization="",
            project="",
            webhook_secret="",
            base_url=address.url,
            timeout=self._http.timeout,
            max_retries=address.retries,
            default_headers={"OpenAI-Organization": unsaid, "OpenAI-Project": unsaid},
            http_client=self._http,
        )
        self._thread.start()

    def submit(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> Future[T]:
        """Start a coroutine function on the connection's loop."""
        with self._closing:
            if self._closed:
                raise InferenceError(f"the engine of {self.address.url} is closed; open it again")
            return asyncio.run_coroutine_threadsafe(work(*arguments), self._loop)

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Result of a coroutine function; interrupting the wait cancels the work."""
        future = self.submit(work, *arguments)
        try:
            return self.result(future)
        finally:
            future.cancel()

    def result(self, future: Future[T]) -> T:
        """Result of submitted work; InferenceError if the connection was closed meanwhile."""
        try:
            return future.result()
        except CancelledError:
            raise InferenceError(
                f"the engine of {self.address.url} was closed in mid-answer; open it again"
            ) from None

    def signal(self, event: asyncio.Event) -> None:
        """Set an event of the connection's loop."""
        with self._closing:
            if not self._closed:
                self._loop.call_soon_threadsafe(event.set)

    async def get(self, path: str) -> Any:
        """Decoded JSON of a GET."""
        with self._translated():
            return await self.client.get(path, cast_to=object, options={"headers": self._headers})

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Decoded JSON of a POST; a path that begins with http is an address of its own."""
        with self._translated():
            return await self.client.post(
                path, cast_to=object, body=body, options={"headers": self._headers}
            )

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a server-sent stream; closing the iterator closes the stream."""
        extra = body.pop("extra", {})
        creators: dict[str, Any] = {
            "chat/completions": self.client.chat.completions.create,
            "completions": self.client.completions.create,
        }
        with self._translated():
            stream = await creators[path](
                **body, stream=True, extra_body=extra, extra_headers=self._headers
            )
            async with stream:
                async for chunk in stream:
                    yield chunk.to_dict()

    def close(self) -> None:
        """Cancel what runs, close the sockets and end the loop; harmless when repeated."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _wind_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()
        await asyncio.get_running_loop().shutdown_asyncgens()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (openai.OpenAIError, httpx2.HTTPError, ValueError) as error:
            raise translate(error, self.address) from None
