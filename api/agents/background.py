"""An event loop in a thread of its own: one face for callers with and without a loop.

A notebook runs a loop already, so `asyncio.run` is refused there; and an engine that is shared by
calls from several loops needs one loop that all of them meet on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Put = Callable[[T], None]


class Work(Generic[T]):
    """A coroutine on the loop; `future` is done when the coroutine has ended, not before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: Future[T] = Future()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._begin, coroutine)

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())

    def cancel(self) -> None:
        """Ask the coroutine to stop; harmless when it has ended."""
        if not self.future.done():
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Cancel, and return when the coroutine has cleaned up."""
        self.cancel()
        self.future.exception()

    async def astop(self) -> None:
        """Cancel, and return when the coroutine has cleaned up, however often this is cancelled."""
        self.cancel()
        ended = asyncio.wrap_future(self.future)
        while not ended.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({ended})
        ended.exception()


class BackgroundLoop:
    """Runs coroutines in a daemon thread that starts with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def is_this_thread(self) -> bool:
        """True in the loop's own thread."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Work[T]:
        """Start a coroutine; raises RuntimeError once the loop is closed."""
        with self._lock:
            if self._closed:
                coroutine.close()
                raise RuntimeError(f"{self._name} is closed; make another")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name=self._name, daemon=True
                )
                self._thread.start()
            if self.is_this_thread:
                coroutine.close()
                raise RuntimeError(
                    f"{self._name} cannot wait for itself; call it from another thread, or await "
                    "its async methods"
                )
            return Work(self._loop, coroutine)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result; an interrupt of the wait (Ctrl-C) ends the coroutine first."""
        work = self.submit(coroutine)
        try:
            return work.future.result()
        finally:
            work.stop()

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result, awaited on the caller's loop; a cancelled wait ends the coroutine first."""
        work = self.submit(coroutine)
        try:
            return await asyncio.shield(asyncio.wrap_future(work.future))
        finally:
            await work.astop()

    def stream(
        self, start: Callable[[Put[R]], Coroutine[Any, Any, None]]
    ) -> Generator[R, None, None]:
        """What a coroutine puts, as it comes; closing the iterator ends the coroutine."""
        inbox: queue.SimpleQueue[tuple[R] | None] = queue.SimpleQueue()
        work = self.submit(start(lambda item: inbox.put((item,))))
        work.future.add_done_callback(lambda _: inbox.put(None))
        try:
            while (parcel := inbox.get()) is not None:
                yield parcel[0]
            work.future.result()
        finally:
            work.stop()

    async def astream(
        self, start: Callable[[Put[R]], Coroutine[Any, Any, None]]
    ) -> AsyncGenerator[R, None]:
        """What a coroutine puts, on the caller's loop; closing the iterator ends the coroutine."""
        inbox: asyncio.Queue[tuple[R] | None] = asyncio.Queue()
        home = asyncio.get_running_loop()

        def put(parcel: tuple[R] | None) -> None:
            with suppress(RuntimeError):  # the caller's loop is closed: nobody listens any more
                home.call_soon_threadsafe(inbox.put_nowait, parcel)

        work = self.submit(start(lambda item: put((item,))))
        work.future.add_done_callback(lambda _: put(None))
        try:
            while (parcel := await inbox.get()) is not None:
                yield parcel[0]
            work.future.result()
        finally:
            await work.astop()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Cancel what runs, wait for it, do the last thing and end the thread.

        Harmless when repeated; `last` is left out where nothing has run.
        """
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = None
        if loop is None or thread is None:
            return
        ended: Future[None] = Future()
        loop.call_soon_threadsafe(lambda: loop.create_task(_end(loop, ended, last)))
        try:
            ended.result()
        finally:
            thread.join()
            loop.close()


async def _end(
    loop: asyncio.AbstractEventLoop,
    ended: Future[None],
    last: Callable[[], Coroutine[Any, Any, None]] | None,
) -> None:
    """Cancel every other task until none is left, then stop the loop."""
    try:
        while others := asyncio.all_tasks(loop) - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
        if last is not None:
            await last()
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()
    except BaseException as error:
        ended.set_exception(error)
    else:
        ended.set_result(None)
    finally:
        loop.call_soon(loop.stop)
