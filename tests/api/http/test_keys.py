"""Keys: what is kept of them, who they let in, how they end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from redis.asyncio import Redis

from api.http.door import Caller, Door
from api.http.keys import KeyStore, Scope, UnknownKey, digest
from api.http.store import connect
from api.jobs.errors import QueueUnavailable
from api.settings import Settings
from workflows.errors import WorkflowInputError

T = TypeVar("T")


class Ring(KeyStore):
    """The keys, and the door that they open."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        super().__init__(redis, namespace)
        self._door = Door(redis, Settings(namespace=namespace))

    async def check(self, text: str) -> Caller | None:
        """Who is let in with this key."""
        caller, wait = await self._door.knock(text)
        assert wait == 0
        return caller


@pytest.fixture
def with_keys(redis_url: str) -> Callable[[Callable[[Ring], Awaitable[T]]], T]:
    """Run a coroutine function over an empty store."""
    namespace = f"k{secrets.token_hex(6)}"

    def run(work: Callable[[Ring], Awaitable[T]]) -> T:
        async def inner() -> T:
            async with connect(redis_url) as redis:
                return await work(Ring(redis, namespace))

        return asyncio.run(inner())

    return run


def test_a_key_lets_its_tenant_in_with_its_scopes(with_keys: Any) -> None:
    async def work(keys: Ring) -> None:
        key, text = await keys.create("alpha", [Scope.READ, Scope.RUNS], note="ci")
        assert await keys.check(text) == Caller(key.id, "alpha", frozenset({"runs", "read"}))
        [listed] = await keys.list()
        assert (listed.tenant, listed.note, listed.scopes) == ("alpha", "ci", ("runs", "read"))
        assert listed.used_at is not None and abs(listed.used_at - time.time()) < 60

    with_keys(work)


def test_redis_holds_nothing_that_opens(with_keys: Any, redis_url: str) -> None:
    async def work(keys: Ring) -> None:
        key, text = await keys.create("alpha")
        secret = text.split("_", 2)[2]
        async with connect(redis_url) as redis:
            [name] = [found async for found in redis.scan_iter(f"*:apikey:{key.id}")]
            kept = await redis.hgetall(name)
        assert kept["hash"] == digest(secret)
        assert secret not in repr(kept)

    with_keys(work)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text.upper(),
        lambda text: text.replace("rw_", "rw__"),
        lambda text: text.rsplit("_", 1)[0],
        lambda text: text.replace(text[3:19], "0" * 16),
        lambda text: "",
        lambda text: "rw_" + "0" * 16 + "_" + "é" * 43,
        lambda text: f" {text}\n",
    ],
)
def test_anything_else_lets_nobody_in(with_keys: Any, damage: Callable[[str], str]) -> None:
    async def work(keys: Ring) -> None:
        _, text = await keys.create("alpha")
        assert await keys.check(damage(text)) is None
        assert await keys.check(text) is not None

    with_keys(work)


def test_revoked_is_at_once(with_keys: Any) -> None:
    async def work(keys: Ring) -> None:
        key, text = await keys.create("alpha")
        assert await keys.check(text)
        assert (await keys.revoke(key.id)).revoked_at is not None
        assert await keys.check(text) is None
        with pytest.raises(WorkflowInputError, match="works no longer"):
            await keys.rotate(key.id)

    with_keys(work)


def test_rotation_overlaps(with_keys: Any) -> None:
    async def work(keys: Ring) -> None:
        old, old_text = await keys.create("alpha", [Scope.INFER], note="app")
        new, new_text = await keys.rotate(old.id, overlap=0.5)
        assert (new.tenant, new.scopes, new.note) == ("alpha", (Scope.INFER,), "app")
        assert await keys.check(old_text) and await keys.check(new_text)
        await asyncio.sleep(0.6)
        assert await keys.check(old_text) is None
        assert await keys.check(new_text)

    with_keys(work)


def test_rotating_twice_does_not_prolong(with_keys: Any) -> None:
    async def work(keys: Ring) -> None:
        old, _ = await keys.create("alpha")
        await keys.rotate(old.id, overlap=10)
        first = (await keys.get(old.id)).expires_at
        await keys.rotate(old.id, overlap=100)
        assert (await keys.get(old.id)).expires_at == first

    with_keys(work)


@pytest.mark.parametrize("tenant", ["", "Alpha", "a b", "a/b", "-a", "a" * 64, "..", "ä"])
def test_tenants_have_plain_names(with_keys: Any, tenant: str) -> None:
    async def work(keys: Ring) -> None:
        with pytest.raises(WorkflowInputError, match="tenant"):
            await keys.create(tenant)

    with_keys(work)


def test_what_is_not_there_is_named(with_keys: Any) -> None:
    async def work(keys: Ring) -> None:
        with pytest.raises(UnknownKey, match="nokey"):
            await keys.revoke("nokey")
        with pytest.raises(WorkflowInputError, match="needs a scope"):
            await keys.create("alpha", [])

    with_keys(work)


def test_without_redis_nobody_is_let_in() -> None:
    async def work() -> None:
        async with connect("redis://127.0.0.1:1") as redis:
            with pytest.raises(QueueUnavailable, match="does not answer"):
                await Ring(redis, "x").check("rw_" + "0" * 16 + "_" + "a" * 43)

    asyncio.run(work())


@pytest.mark.parametrize("url", ["http://127.0.0.1", "nonsense", "redis://127.0.0.1:port"])
def test_a_wrong_url_is_named(url: str) -> None:
    with pytest.raises(WorkflowInputError, match="RAGWRIGHT_REDIS_URL"):
        connect(url)
