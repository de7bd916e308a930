"""Requests to one server: retries that cannot do a thing twice, and errors as exceptions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2

from api.client.errors import Busy, ServiceError, Unreachable, error_of

LONGEST_WAIT = 30.0
"""Most seconds between two tries, whatever the server asks for."""


class Wire:
    """The way to one server; the key goes to this server only, and into no message."""

    def __init__(self, base_url: str, key: str, *, timeout: float, retries: int) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"base_url {base_url!r} must begin with http:// or https:// and name a host"
            )
        self.retries = retries
        self._http = httpx2.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
            follow_redirects=False,
            trust_env=not _is_loopback(parts.hostname),
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        files: Any = None,
        data: Any = None,
        repeatable: bool | None = None,
    ) -> Any:
        """The decoded answer; raises ServiceError.

        A request that may have been received is sent again only where it is `repeatable`, which
        GET always is; one that was refused for the moment, or never arrived, always is.
        """
        repeatable = method == "GET" if repeatable is None else repeatable
        given = {name: value for name, value in (query or {}).items() if value is not None}
        for tries in range(self.retries + 1):
            last = tries == self.retries
            try:
                answer = await self._http.request(
                    method,
                    path,
                    json=json,
                    params=given,
                    headers=dict(headers or {}),
                    files=files,
                    data=data,
                )
            except httpx2.TransportError as error:
                never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if last or not (repeatable or never_sent):
                    raise self.unreachable(error) from None
                await self.pause(tries)
                continue
            if answer.is_success:
                return answer.json() if answer.content else None
            refused = error_of(answer.status_code, _json(answer), answer.headers)
            if last or not isinstance(refused, Busy):
                raise refused
            await self.pause(tries, refused.retry_after)
        raise AssertionError("the last try returns or raises")

    @asynccontextmanager
    async def events(self, path: str, after: str) -> AsyncGenerator[httpx2.EventSource]:
        """An open stream of server-sent events, from behind an event id."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": after}
        async with self._http.stream("GET", path, headers=headers) as answer:
            if not answer.is_success:
                await answer.aread()
                raise error_of(answer.status_code, _json(answer), answer.headers)
            yield httpx2.EventSource(answer)

    async def pause(self, tries: int, asked: float | None = None) -> None:
        """Wait before another try: what the server asks for, or longer each time."""
        wait = asked if asked is not None else 0.2 * 2**tries * random.uniform(0.5, 1.5)
        await asyncio.sleep(min(wait, LONGEST_WAIT))

    def unreachable(self, error: Exception | None) -> ServiceError:
        """What to raise when the last try failed; None where answers broke off without an error."""
        said = " ".join(str(error).split()) if error else "its answers break off"
        return Unreachable(
            "unreachable",
            f"server {self.base_url} does not answer ({said or type(error).__name__}; tries: "
            f"{self.retries + 1}); start it, or correct base_url",
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _json(answer: httpx2.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
