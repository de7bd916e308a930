"""The thread that owns a `vllm.LLM` and steps its engine while there is work.

vLLM's offline engine may be touched by one thread only, so everything that others want of it is an
order in the inbox of this one. Requests join and leave between two steps.
"""

from __future__ import annotations

import atexit
import gc
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from inference.errors import InferenceError, InferenceInputError
from inference.requests import FinishReason, Request

T = TypeVar("T")


class Task(Protocol):
    """Work on one sequence; what takes or ends it is called by the loop, in its thread."""

    request: Request
    prompt: dict[str, Any]
    params: Any
    deadline: float | None

    def take(self, output: Any) -> None:
        """Use a RequestOutput; the last one is `finished`."""
        ...

    def end(self, reason: FinishReason) -> None:
        """It left the engine before it was finished."""
        ...

    def fail(self, error: Exception) -> None:
        """It left the engine without a result."""
        ...


class Loop:
    """Runs `load` in its thread, then steps the `vllm.LLM` that it returns."""

    def __init__(self, load: Callable[[], Any], name: str) -> None:
        self._name = name
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tasks: dict[str, Task] = {}
        self._closing = threading.Lock()
        self._gone: str | None = None
        self._engine: Any = None
        loaded: Future[Any] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(load, loaded), name="vllm", daemon=True
        )
        self._thread.start()
        self.llm: Any = loaded.result()
        atexit.register(self.close)  # the thread must not step while Python ends

    def add(self, tasks: Sequence[Task]) -> None:
        """Hand all tasks to the engine, or none: raises InferenceInputError for a refused one."""
        self._call(lambda: self._add(tasks))

    def abort(self, task: Task) -> None:
        """End a task before the next step; harmless if it is not there any more."""
        self._call(lambda: self._leave([task], FinishReason.ABORTED))

    def close(self) -> None:
        """Fail what runs and release the model; harmless when repeated."""
        atexit.unregister(self.close)
        with self._closing:
            if self._gone is None:
                self._gone = "is closed"
                self._inbox.put(None)
        self._thread.join()
        self.llm = None

    def _call(self, work: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def order() -> None:
            try:
                if self._engine is None:
                    raise self._error()
                done.set_result(work())
            except Exception as error:  # raised where the work was asked for
                done.set_exception(error)

        with self._closing:
            if self._gone is not None:
                raise self._error()
            self._inbox.put(order)
        return done.result()

    def _error(self) -> InferenceError:
        return InferenceError(f"the engine of model {self._name!r} {self._gone}; open it again")

    def _run(self, load: Callable[[], Any], loaded: Future[Any]) -> None:
        try:
            llm = load()
        except BaseException as error:  # raised where the engine was asked for
            loaded.set_exception(error)
            return
        self._engine = llm.llm_engine
        loaded.set_result(llm)
        del llm
        try:
            self._serve()
        except Exception as error:  # told to everybody who waits; no step can follow
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            with self._closing:
                self._gone = f"broke down ({reason})"
        finally:
            self._wind_up()

    def _serve(self) -> None:
        while self._obey():
            late = [
                task
                for task in self._tasks.values()
                if task.deadline is not None and time.monotonic() >= task.deadline
            ]
            self._leave(late, FinishReason.DEADLINE)
            if not self._tasks:
                continue
            for output in self._engine.step():
                task = self._tasks.get(output.request_id)
                if task is None:
                    continue
                if output.finished:
                    del self._tasks[output.request_id]
                task.take(output)

    def _obey(self) -> bool:
        """Carry out the orders, waiting for one while nothing runs; False for the last."""
        wait = not self._tasks
        while True:
            try:
                order = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            wait = False

    def _add(self, tasks: Sequence[Task]) -> None:
        added: dict[str, Task] = {}
        for task in tasks:
            name = uuid4().hex  # two scores of one request are two requests here
            try:
                self._engine.add_request(name, task.prompt, task.params)
            except Exception as error:  # vLLM's class for bad input is no ValueError any more
                self._engine.abort_request(list(added))
                said = " ".join(str(error).split())[:300]
                raise InferenceInputError(
                    f"vLLM refuses request {task.request.id!r}: {said}"
                ) from error
            added[name] = task
        self._tasks.update(added)

    def _leave(self, tasks: Sequence[Task], reason: FinishReason) -> None:
        leaving = {id(task) for task in tasks}
        names = [name for name, task in self._tasks.items() if id(task) in leaving]
        if names:
            self._engine.abort_request(names)
        for name in names:
            self._tasks.pop(name).end(reason)

    def _wind_up(self) -> None:
        """Fail what is left, in the engine and in the inbox, and let the model go."""
        for task in self._tasks.values():
            task.fail(self._error())
        self._tasks.clear()
        engine, self._engine = self._engine, None
        while True:
            try:
                order = self._inbox.get_nowait()
            except queue.Empty:
                break
            if order is not None:
                order()
        engine.engine_core.shutdown()
        del engine
        gc.collect()
