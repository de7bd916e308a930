"""The whole application under a real uvicorn on a loopback port, with keys of two tenants."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
import uvicorn
from fastapi import APIRouter, FastAPI

from api.http.app import create_app
from api.http.keys import Scope
from api.http.service import Service, open_service
from api.settings import Settings

T = TypeVar("T")


class Site:
    """A running server; `url` is where, `alpha` and `beta` are keys with every scope."""

    def __init__(self, settings: Settings, *routers: APIRouter) -> None:
        self.settings = settings
        self.routers = routers
        self.loop = asyncio.new_event_loop()
        self.service: Service
        self.app: FastAPI
        self.server: uvicorn.Server
        self.url = ""
        self.alpha = self.beta = ""
        self._up = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Return when it answers."""
        self._thread.start()
        assert self._up.wait(30), "the server did not start"
        if self._fault is not None:
            raise self._fault

    def stop(self) -> None:
        """End the server and its thread."""
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not stop"

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def key(self, tenant: str, *scopes: Scope) -> str:
        """The text of another key; without scopes it has all."""
        return self.do(self.service.keys.create(tenant, scopes or tuple(Scope)))[1]

    def client(self, key: str | None = None) -> httpx2.Client:
        """A client with a key; close it."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException as fault:
            self._fault = fault
        finally:
            self._up.set()
            self.loop.close()

    async def _serve(self) -> None:
        # With its protocol named, asyncio sets TCP_NODELAY on what it accepts.
        with socket.socket(proto=socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with open_service(self.settings) as self.service:
                self.alpha = (await self.service.keys.create("alpha"))[1]
                self.beta = (await self.service.keys.create("beta"))[1]
                self.app = create_app(self.service)
                for router in self.routers:
                    self.app.include_router(router)
                config = uvicorn.Config(
                    self.app,
                    log_config=None,
                    access_log=False,
                    ws="none",
                    timeout_graceful_shutdown=2,
                )
                self.server = _Server(config, self._up)
                await self.server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, up: threading.Event) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()


@contextmanager
def running(settings: Settings, *routers: APIRouter) -> Iterator[Site]:
    """A site that ends with the block; `routers` are served besides the application's own."""
    site = Site(settings, *routers)
    site.start()
    try:
        yield site
    finally:
        site.stop()
