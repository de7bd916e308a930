"""Who knocks, and whether it is too soon: a key and its rate, in one round trip to Redis."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from api.http.keys import KEY, Scope, digest, place
from api.http.store import reachable
from api.settings import Settings

SEEN_EVERY = 60
"""Seconds within which a second use of a key is not written down again."""

SCRIPT = """
local hash, tenant, scopes, used, expires, revoked = unpack(redis.call('HMGET', KEYS[1],
    'hash', 'tenant', 'scopes', 'used_at', 'expires_at', 'revoked_at'))
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
if hash ~= ARGV[1] or revoked or (expires and now >= tonumber(expires)) then return false end
if not used or now - tonumber(used) >= tonumber(ARGV[4]) then
    redis.call('HSET', KEYS[1], 'used_at', clock[1] .. '.' .. string.format('%06d', clock[2]))
end
local size, rate = tonumber(ARGV[2]), tonumber(ARGV[3])
local row = redis.call('HMGET', KEYS[2], 'tokens', 'at')
local tokens = math.min(size,
    (tonumber(row[1]) or size) + math.max(0, now - (tonumber(row[2]) or now)) * rate)
if tokens < 1 then return {tenant, scopes, tostring((1 - tokens) / rate)} end
redis.call('HSET', KEYS[2], 'tokens', tokens - 1, 'at', now)
redis.call('EXPIRE', KEYS[2], math.ceil(size / rate) + 1)
return {tenant, scopes, '0'}
"""
"""Compares a secret's hash, then takes a token from the key's bucket or says when there is one.

A wrong secret takes nothing, or whoever knows a key's id could use its rate up. Hashes of random
secrets are compared, so that the time it takes tells nothing that helps to guess one.
"""


@dataclass(frozen=True)
class Caller:
    """Who a request comes from."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]


class Door:
    """Tells callers by their keys and counts their requests; raises QueueUnavailable.

    The counts lie in Redis in a token bucket of a minute's size, so that a limit holds over all
    servers of a service and over restarts. A request that is refused further on has counted.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._ask = redis.register_script(SCRIPT)
        self._keys = place(settings.namespace)
        self._buckets = f"{settings.namespace}:rate:"
        self.rate = settings.rate_per_minute

    async def knock(self, text: str) -> tuple[Caller | None, float]:
        """Whose key this is, and the seconds it has to wait for its next request.

        None for what is no key, or works no longer: asked for every request and never cached, so
        that a revoked key ends at once.
        """
        parts = KEY.fullmatch(text)
        if parts is None:
            return None, 0.0
        key_id, secret = parts.groups()
        async with reachable():
            found = await self._ask(
                keys=[self._keys + key_id, self._buckets + key_id],
                args=[digest(secret), self.rate, self.rate / 60, SEEN_EVERY],
            )
        if found is None:
            return None, 0.0
        tenant, scopes, wait = found
        granted = frozenset(Scope(scope) for scope in scopes.split())
        return Caller(key_id, tenant, granted), float(wait)
