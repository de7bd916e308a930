"""What a server says about itself: its model, its context, what it can do beyond the protocol."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from inference.engine import Capability, OpenAIConfig
from inference.errors import (
    AccessDenied,
    InferenceInputError,
    ServerUnavailable,
    UnknownName,
)
from inference.openai.connection import Address, Connection, is_loopback
from inference.openai.offers import CHAT, COMPLETIONS, Offers, probe
from inference.openai.tokens import LocalTokens, ServerTokens, Tokens
from inference.requests import Message
from inference.suggest import nearest

BASE_URL = "RAGWRIGHT_OPENAI_BASE_URL"
HOSTS = "RAGWRIGHT_OPENAI_HOSTS"
EXTENDED = ("vllm", "ragwright")
"""Who owns the models of servers that know vLLM's additions; `ragwright serve` is one."""


@dataclass(frozen=True)
class Profile:
    """One model of one server, as discovered when the engine opened.

    `extended` allows what vLLM adds to the protocol: more sampling parameters, token ids in the
    answer, log-probabilities of the prompt. `tokens` is None where nobody counts; `offers` is
    what the endpoints do beyond plain text.
    """

    model: str
    context_length: int
    capabilities: frozenset[Capability]
    extended: bool = False
    tokens: Tokens | None = None
    offers: Offers = field(default_factory=Offers)


def address(config: OpenAIConfig) -> Address:
    """Where to connect; the key comes from the environment variable that the options name.

    Raises InferenceInputError for an address that is missing, not http(s), holds a password, is
    on a host that the environment does not name, or would carry the key over an open network in
    clear text; AccessDenied for an empty variable that the options name.
    """
    url = config.base_url or os.environ.get(BASE_URL, "")
    if not url:
        raise InferenceInputError(
            f"the openai engine has no address; give base_url in the workflow's resource, or set "
            f"{BASE_URL}, for example to http://127.0.0.1:8000/v1"
        )
    bad = InferenceInputError(
        f"base_url {url!r} must be http(s)://HOST[:PORT]/PATH, for example http://127.0.0.1:8000/v1"
    )
    try:
        parts, sent_to = urlsplit(url), httpx2.URL(url).host
    except (ValueError, httpx2.InvalidURL):
        raise bad from None
    if parts.username or parts.password:
        raise InferenceInputError(
            f"base_url holds a user name or password (host {parts.hostname}); put the key into "
            f"the environment variable {config.api_key_env} instead"
        )
    # The host that is checked must be the one that the client reads from the same text.
    same = parts.hostname is not None and sent_to.lower() == parts.hostname
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or not same:
        raise bad
    if not is_loopback(parts.hostname) and parts.hostname not in _named_hosts():
        raise InferenceInputError(
            f"base_url {url} is on another host, which a workflow file alone cannot choose, "
            f"because it would be sent questions and documents; set {BASE_URL} to it, or add "
            f"{parts.hostname} to {HOSTS} (separated by commas)"
        )
    key = os.environ.get(config.api_key_env, "")
    if not key and "api_key_env" in config.model_fields_set:
        raise AccessDenied(f"the environment variable {config.api_key_env} is empty; set the key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise AccessDenied(
            f"the environment variable {config.api_key_env} holds a blank or a character that no "
            "header can carry; set the key alone"
        )
    if key and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InferenceInputError(
            f"base_url {url} would carry the key of {config.api_key_env} in clear text to another "
            "host; use https, or unset the key"
        )
    source = f"the environment variable {config.api_key_env}"
    return Address(url.rstrip("/"), key, source, config.timeout, config.retries)


def _named_hosts() -> set[str]:
    """Hosts other than this one that the environment allows."""
    listed = {host.strip().lower() for host in os.environ.get(HOSTS, "").split(",")}
    return listed | {urlsplit(os.environ.get(BASE_URL, "")).hostname or ""} - {""}


async def discover(connection: Connection, config: OpenAIConfig) -> Profile:
    """Ask the server which models it has and try what it can do.

    Raises UnknownName for a model it does not have, InferenceInputError where the context length
    is neither said nor given.
    """
    place = f"server {connection.address.url}"
    listing = await connection.get("/models")
    rows = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "id" in r for r in rows):
        raise ServerUnavailable(
            f"{place} answers /models with something else than a list of models; correct base_url, "
            "which mostly ends in /v1"
        )
    row = _row(place, {str(row["id"]): row for row in rows}, config.model)
    model, extended = str(row["id"]), row.get("owned_by") in EXTENDED
    tokens, renders = await _tokens(connection, model, config, extended)
    able = {Capability.STREAM, Capability.ABORT}
    if config.api != "completions" and renders:
        able.add(Capability.CHAT)
    if extended:
        able.add(Capability.SEED)
    if extended and config.api != "chat" and isinstance(tokens, ServerTokens):
        able.add(Capability.SCORE)
    context = _context(place, model, row.get("max_model_len"), config.context_length)
    endpoints = {CHAT: Capability.CHAT in able, COMPLETIONS: config.api != "chat"}
    offers = await probe(connection, model, [at for at, on in endpoints.items() if on], extended)
    if any(kind == "json_schema" for _, kind in offers.grammars):
        able.add(Capability.GRAMMAR)
    if offers.logprobs:
        able.add(Capability.LOGPROBS)
    return Profile(model, context, frozenset(able), extended, tokens, offers)


def _row(place: str, rows: dict[str, dict[str, Any]], model: str | None) -> dict[str, Any]:
    if model is None and len(rows) == 1:
        return next(iter(rows.values()))
    if model is None:
        raise InferenceInputError(
            f"{place} offers {', '.join(sorted(rows)) or 'no model'}; say which with model"
        )
    if model not in rows:
        raise UnknownName(
            f"{place} has no model {model!r}; it offers: {', '.join(sorted(rows)) or 'none'}; "
            f"{nearest(model, rows)}"
        )
    return rows[model]


def _context(place: str, model: str, said: object, given: int | None) -> int:
    found = said if isinstance(said, int) and said > 0 else None
    if found is None and given is None:
        raise InferenceInputError(
            f"{place} does not say how long the context of {model!r} is; give context_length"
        )
    if found is not None and given is not None and given > found:
        raise InferenceInputError(
            f"context_length {given} is more than the {found} tokens that {place} serves of "
            f"{model!r}; lower it or leave it out"
        )
    return given or found or 0


async def _tokens(
    connection: Connection, model: str, config: OpenAIConfig, extended: bool
) -> tuple[Tokens | None, bool]:
    """Who counts, and whether the model takes a dialogue (assumed where nobody can be asked)."""
    if config.tokenizer is not None:
        return await asyncio.to_thread(LocalTokens, config.tokenizer), True
    if not extended:
        return None, True
    tokens = ServerTokens(connection, model)
    try:
        await tokens.bare("a")
    except UnknownName:  # a proxy that passes /v1 only
        return None, True
    try:
        await tokens.dialogue([Message("user", "a")])
    except InferenceInputError:
        return tokens, False
    return tokens, True
