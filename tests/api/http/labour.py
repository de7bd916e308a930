"""A worker's side of the queue, step by step, so that a test decides when what happens."""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from api.jobs.job import Claim, Job
from api.jobs.redis_queue import RedisQueue
from tests.api.http.site import Site


class Labour:
    """Claims one job and writes what an attempt at it would."""

    def __init__(self, site: Site, job_id: str) -> None:
        self.site = site
        queue = site.service.queue
        assert isinstance(queue, RedisQueue)
        self.queue = queue
        claim = site.do(queue.claim(job_id, secrets.token_hex(4)))
        assert claim is not None
        self.claim: Claim = claim
        self._batch = 0

    def tell(self, *events: dict[str, Any]) -> None:
        """Append events to the job's stream."""
        self._batch += 1
        lines = [orjson.dumps(event) for event in events]
        self.site.do(self.queue.append(self.claim, self._batch, lines))

    def finish(self, status: str = "completed", **facts: Any) -> Job:
        """End the attempt."""
        result = {"run_id": self.claim.job.id, "status": status, "error": None, **facts}
        return self.site.do(self.queue.finish(self.claim, result))

    def fail(self) -> Job:
        """End the last attempt with an error."""
        error = {"code": "broken", "message": "it broke"}
        return self.site.do(self.queue.give_up(self.claim, error, retry=False))
