"""Calls of `queue.lua`, the only thing that changes a job."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from api.jobs.errors import UnknownJob
from api.jobs.link import FAILURES, TRIES, TextRedis, unavailable
from api.jobs.records import JOB_ID
from workflows.keeping import Fenced


class Script:
    """The script and the few plain reads, on one server and under one namespace."""

    def __init__(self, client: TextRedis, url: str, namespace: str) -> None:
        self.client = client
        self.url = url
        self.space = namespace
        self._run = client.register_script(
            files("api.jobs").joinpath("queue.lua").read_text(encoding="utf-8")
        )

    def key(self, *parts: str) -> str:
        """A key of the namespace."""
        return ":".join((self.space, *parts))

    async def __call__(self, command: str, *arguments: Any) -> Any:
        """What the command returns; raises QueueUnavailable."""
        for left in reversed(range(TRIES)):
            try:
                return await self._run(keys=[self.space], args=[command, *arguments])
            except NoScriptError as error:  # a restart after the script was loaded again
                if not left:
                    raise unavailable(error, self.url) from None
            except FAILURES as error:
                raise unavailable(error, self.url) from None

    async def held(self, command: str, job_id: str, fence: int, *arguments: Any) -> Any:
        """What a command of the claim's holder returns; raises Fenced, QueueUnavailable."""
        answer = await self(command, job_id, fence, *arguments)
        if answer == "fenced":
            raise Fenced(f"job {job_id} is no longer this worker's (its claim was {fence})")
        return answer

    async def record(self, job_id: str, tenant: str | None = None) -> dict[str, str]:
        """The record of a job; raises UnknownJob where it is not the tenant's."""
        record: dict[str, str] = {}
        if JOB_ID.fullmatch(job_id):
            try:
                record = await self.client.hgetall(self.key("job", job_id))
            except FAILURES as error:
                raise unavailable(error, self.url) from None
        if not record or tenant not in (None, record["tenant"]):
            raise UnknownJob(f"no job {job_id!r}; see: ragwright jobs list")
        return record

    async def page(
        self, index: str, below: str, limit: int
    ) -> tuple[list[dict[str, str]], str | None]:
        """Records of an index, newest first, and where the next page begins.

        Ids whose record has expired are taken out of the index.
        """
        try:
            found = await self.client.zrevrangebyscore(
                index, below, "-inf", start=0, num=limit, withscores=True
            )
            pipe = self.client.pipeline(transaction=False)
            for job_id, _ in found:
                pipe.hgetall(self.key("job", job_id))
            records = await pipe.execute() if found else []
            gone = [job_id for (job_id, _), r in zip(found, records, strict=True) if not r]
            if gone:
                await self.client.zrem(index, *gone)
        except FAILURES as error:
            raise unavailable(error, self.url) from None
        more = str(int(found[-1][1])) if len(found) == limit else None
        return [record for record in records if record], more
