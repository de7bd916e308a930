"""API keys: `rw_<id>_<secret>`, kept in Redis as hashes, with scopes, rotation and revocation."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from api.http.store import reachable
from workflows.errors import WorkflowInputError

OVERLAP = 86400.0
"""Seconds for which a rotated key still works."""

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
KEY = re.compile(r"rw_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
"""A key's text: its id and its secret."""


class Scope(StrEnum):
    """What a key may be used for."""

    RUNS = "runs"
    """Submit, see, cancel, answer and retry the tenant's runs."""
    INFER = "infer"
    """The routes that speak OpenAI's protocol."""
    READ = "read"
    """See and search the tenant's workflows, indexes and graphs."""
    WRITE = "write"
    """Add to them and delete from them."""
    ADMIN = "admin"
    """Figures about all tenants (/metrics)."""


class UnknownKey(WorkflowInputError):
    """No key of this id."""

    code = "unknown_key"


@dataclass(frozen=True)
class Key:
    """A key without its secret; times are seconds since the epoch.

    `expires_at` is set when the key was rotated, `revoked_at` when it was revoked.
    """

    id: str
    tenant: str
    scopes: tuple[Scope, ...]
    note: str
    created_at: float
    used_at: float | None = None
    expires_at: float | None = None
    revoked_at: float | None = None

    def works(self, now: float) -> bool:
        """True unless it was revoked, or rotated and its time is over."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {**asdict(self), "scopes": [scope.value for scope in self.scopes]}


def digest(secret: str) -> str:
    """What is kept of a secret.

    Plain SHA-256: a slow hash protects secrets that people choose. These are 256 random bits,
    which nobody finds by trying, however fast a try is, and every request computes one.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def place(namespace: str) -> str:
    """What the names of all keys in Redis begin with."""
    return f"{namespace}:apikey:"


class KeyStore:
    """The keys of a service, in Redis under its namespace; raises QueueUnavailable."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis = redis
        self._ids = f"{namespace}:apikeys"
        self._prefix = place(namespace)

    async def create(
        self, tenant: str, scopes: Iterable[Scope] = tuple(Scope), note: str = ""
    ) -> tuple[Key, str]:
        """A key and its text, which cannot be shown again; raises WorkflowInputError."""
        if not TENANT.fullmatch(tenant):
            raise WorkflowInputError(
                f"tenant {tenant!r} must be 1 to 63 of a-z, 0-9, '-' and '_', and begin with a "
                "letter or digit"
            )
        granted = tuple(scope for scope in Scope if scope in set(scopes))
        if not granted:
            raise WorkflowInputError(f"a key needs a scope: {', '.join(Scope)}")
        if len(note) > 200:
            raise WorkflowInputError(f"the note has {len(note)} characters; 200 are allowed")
        secret = secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(8), tenant, granted, note, time.time())
        async with reachable(), self._redis.pipeline(transaction=True) as both:
            fields = _fields(key, digest(secret))
            both.hset(self._prefix + key.id, mapping=fields)
            both.zadd(self._ids, {key.id: key.created_at})
            await both.execute()
        return key, f"rw_{key.id}_{secret}"

    async def list(self) -> Sequence[Key]:
        """All keys, oldest first, those that no longer work included."""
        async with reachable():
            ids = [str(name) for name in await self._redis.zrange(self._ids, 0, -1)]
            async with self._redis.pipeline(transaction=False) as many:
                for name in ids:
                    many.hgetall(self._prefix + name)
                rows = await many.execute()
        return [_key(name, row) for name, row in zip(ids, rows, strict=True) if row]

    async def get(self, key_id: str) -> Key:
        """One key; raises UnknownKey."""
        row = await self._row(key_id)
        if not row:
            raise UnknownKey(f"no key {key_id!r}; `ragwright keys list` shows all")
        return _key(key_id, row)

    async def revoke(self, key_id: str) -> Key:
        """End a key at once."""
        await self.get(key_id)
        async with reachable():
            await self._redis.hset(self._prefix + key_id, "revoked_at", repr(time.time()))
        return await self.get(key_id)

    async def rotate(self, key_id: str, overlap: float = OVERLAP) -> tuple[Key, str]:
        """A key in place of another, which works for `overlap` seconds more."""
        old = await self.get(key_id)
        now = time.time()
        if not old.works(now):
            raise WorkflowInputError(f"key {key_id!r} works no longer; create another")
        made = await self.create(old.tenant, old.scopes, old.note)
        ends = min(now + overlap, old.expires_at or float("inf"))
        async with reachable():
            await self._redis.hset(self._prefix + key_id, "expires_at", repr(ends))
        return made

    async def _row(self, key_id: str) -> dict[str, str]:
        async with reachable():
            row = await self._redis.hgetall(self._prefix + key_id)
        return {str(name): str(value) for name, value in row.items()}


def _fields(key: Key, hashed: str) -> dict[Any, Any]:
    """A key that was just made, as a Redis hash; what is None has no field."""
    return {
        "hash": hashed,
        "tenant": key.tenant,
        "scopes": " ".join(key.scopes),
        "note": key.note,
        "created_at": repr(key.created_at),
    }


def _key(key_id: str, row: Mapping[str, str]) -> Key:
    times = {
        name: float(row[name]) for name in ("used_at", "expires_at", "revoked_at") if name in row
    }
    scopes = tuple(Scope(scope) for scope in row["scopes"].split())
    return Key(key_id, row["tenant"], scopes, row["note"], float(row["created_at"]), **times)
