"""A job as it lies in Redis: a hash of texts, read back into `Job` and `Claim`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from api.jobs.job import Claim, Job, JobState, Priority
from workflows.errors import WorkflowInputError
from workflows.store import RunManifest

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""What an id may be; it is the name of a folder too."""


def read_job(record: Mapping[str, str]) -> Job:
    """The job of a record; limits that `resume` raised stand in its manifest."""
    manifest = json.loads(record["manifest"])
    if raised := _json(record, "budget"):
        manifest["budget"] = {**(manifest["budget"] or {}), **raised}
    priority: Priority = record["priority"]  # type: ignore[assignment]  # Lua writes no other
    return Job(
        id=record["id"],
        tenant=record["tenant"],
        state=JobState(record["state"]),
        priority=priority,
        manifest=manifest,
        submitted_at=float(record["submitted_at"]),
        started_at=_time(record, "started_at"),
        finished_at=_time(record, "finished_at"),
        attempt=int(record["attempt"]),
        max_attempts=int(record["max_attempts"]),
        fence=int(record["fence"]),
        cancel_requested=record.get("cancel") == "1",
        asks=tuple(_json(record, "asks") or ()),
        result=_json(record, "result"),
        error=_json(record, "error"),
    )


def read_claim(record: Mapping[str, str]) -> Claim:
    """The right to work on the job of a record."""
    return Claim(read_job(record), int(record["fence"]), _json(record, "answers") or {})


def fields(flat: Sequence[str]) -> dict[str, str]:
    """The fields of a hash as a script returns them: names and values in turn."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def text(value: Any, what: str = "the order") -> str:
    """JSON of a value; raises WorkflowInputError where it is not made of valid UTF-8."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        written.encode()
    except UnicodeEncodeError:
        raise WorkflowInputError(
            f"{what} holds text that is not valid UTF-8; correct its encoding"
        ) from None
    return written


def optional(value: Any) -> str:
    """JSON of a value, or an empty text where there is none."""
    return "" if value is None else json.dumps(value, separators=(",", ":"))


def manifest_text(manifest: RunManifest, most: int) -> str:
    """A manifest as it is kept; raises WorkflowInputError beyond `most` bytes."""
    if not JOB_ID.fullmatch(manifest.run_id):
        raise WorkflowInputError(
            f"run id {manifest.run_id!r} must consist of letters, digits, '_', '-' and '.'"
        )
    written = text(asdict(manifest))
    size = len(written.encode())
    if size > most:
        raise WorkflowInputError(
            f"the order has {size} bytes, at most {most} are taken (RAGWRIGHT_MAX_BODY); "
            "give large texts as documents"
        )
    return written


def digest(manifest: RunManifest, priority: str, max_attempts: int) -> str:
    """Hash of what was ordered: two orders with one are the same."""
    facts = asdict(manifest)
    del facts["run_id"], facts["versions"]
    return _hash([facts, priority, max_attempts])


def key_digest(tenant: str, key: str) -> str:
    """Name under which an idempotency key of a tenant is kept, whatever characters it has."""
    return _hash([tenant, key])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _json(record: Mapping[str, str], name: str) -> Any:
    written = record.get(name)
    return json.loads(written) if written else None


def _time(record: Mapping[str, str], name: str) -> float | None:
    written = record.get(name)
    return float(written) if written else None
