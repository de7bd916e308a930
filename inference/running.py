"""The requests an engine is working on, by their ids."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from inference.errors import InferenceInputError
from inference.requests import Request


class HasRequest(Protocol):
    """Work that answers one request."""

    request: Request


J = TypeVar("J", bound=HasRequest)


class Running(Generic[J]):
    """Jobs that run now, safe from any thread; no two have the same request id."""

    def __init__(self) -> None:
        self._jobs: dict[str, J] = {}
        self._lock = threading.Lock()

    def find(self, request_id: str) -> J | None:
        """The job of a request, or None if it is not running."""
        with self._lock:
            return self._jobs.get(request_id)

    def __contains__(self, request_id: object) -> bool:
        with self._lock:
            return request_id in self._jobs

    @contextmanager
    def admit(self, jobs: Sequence[J]) -> Iterator[None]:
        """Hold all of the jobs, or none: raises InferenceInputError for an id in use."""
        with self._lock:
            ids: set[str] = set()
            for job in jobs:
                if job.request.id in ids or job.request.id in self._jobs:
                    raise InferenceInputError(
                        f"request id {job.request.id!r} is already in use; ids that run at the "
                        "same time must differ"
                    )
                ids.add(job.request.id)
            self._jobs.update({job.request.id: job for job in jobs})
        try:
            yield
        finally:
            with self._lock:
                for job in jobs:
                    del self._jobs[job.request.id]
