"""What a server does beyond plain text, found by asking it for a few tokens.

A parameter that is merely accepted proves nothing, as many servers skip what they do not know;
what counts is an answer that shows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from inference.errors import InferenceInputError, ServerUnavailable, Unsupported
from inference.grammar.spec import Grammar, Kind
from inference.openai.connection import Connection
from inference.requests import Request, TokenLogprob, refuse_native_only

CHAT = "chat/completions"
COMPLETIONS = "completions"
BROKEN = (500, 501)
"""Statuses with which a server may meet a parameter that it does not know."""

_PROBES = (
    Grammar.json_schema(
        {"type": "object", "properties": {"a": {"enum": ["q"]}}, "required": ["a"]}
    ),
    Grammar.regex("qz"),
    Grammar.ebnf('root ::= "qz"'),
)


@dataclass(frozen=True)
class Offers:
    """Abilities of the endpoints: (endpoint, kind of grammar) pairs, endpoints, and the server's.

    With `salts` the server keeps the cached prefixes of tenants apart.
    """

    grammars: frozenset[tuple[str, Kind]] = frozenset()
    logprobs: frozenset[str] = frozenset()
    salts: bool = False

    def check(self, request: Request, endpoint: str, place: str) -> None:
        """Raise Unsupported, naming the field, for what the endpoint was not found to do."""
        kind = None if request.grammar is None else request.grammar.kind
        if kind is not None and (endpoint, kind) not in self.grammars:
            able = sorted({known for at, known in self.grammars if at == endpoint})
            raise Unsupported(
                f"request {request.id!r} gives a grammar ({kind}), and {place} was not found to "
                f"keep to one at /{endpoint} (kinds it keeps to: {', '.join(able) or 'none'}); "
                "leave it out, or use the native engine for it"
            )
        if request.logprobs is not None and endpoint not in self.logprobs:
            raise Unsupported(
                f"request {request.id!r} asks for logprobs={request.logprobs}, and {place} was "
                f"found to give none at /{endpoint}; leave it out, or use the native engine for it"
            )
        if request.tenant and not self.salts:
            raise Unsupported(
                f"request {request.id!r} names the tenant {request.tenant!r}, and {place} is not "
                "known to keep what it caches of tenants apart; leave it out, or use the native "
                "engine for it"
            )
        refuse_native_only(request, place)


def constraint(grammar: Grammar) -> dict[str, Any]:
    """The part of a body that asks for a grammar: the protocol's for JSON, vLLM's for the rest."""
    if grammar.kind == "json_schema":
        schema = json.loads(grammar.lowered())
        described = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": described}}
    key = "regex" if grammar.kind == "regex" else "grammar"
    return {"structured_outputs": {key: grammar.lowered()}}


def salt(tenant: str) -> dict[str, Any]:
    """The part of a body that keeps a tenant's cached prefixes from others; names stay here."""
    return {"cache_salt": sha256(tenant.encode()).hexdigest()} if tenant else {}


def logprobs(choice: dict[str, Any], ids: Iterable[int] = (), most: int = 20) -> list[TokenLogprob]:
    """Log-probabilities of one choice of an answer, in the form of either endpoint.

    `ids` are the token ids of the same choice, where the server gives them.
    """
    said = choice.get("logprobs") or {}
    if "content" in said:
        rows = [
            (
                row["token"],
                row["logprob"],
                [(t["token"], t["logprob"]) for t in row["top_logprobs"]],
            )
            for row in said["content"] or ()
        ]
    else:
        tops = said.get("top_logprobs") or ()
        given = zip(said.get("tokens") or (), said.get("token_logprobs") or (), strict=True)
        rows = [
            (token, value, list((tops[at] or {}).items()) if at < len(tops) else [])
            for at, (token, value) in enumerate(given)
        ]
    known: list[int | None] = list(ids)
    if len(known) != len(rows):
        known = [None] * len(rows)
    return [
        TokenLogprob(str(token), float(value), token_id, _best(top, most))
        for (token, value, top), token_id in zip(rows, known, strict=True)
    ]


def _best(top: list[tuple[str, float]], most: int) -> tuple[tuple[str, float], ...]:
    """The most probable first; a server adds the token it chose where that is not among them."""
    return tuple(sorted(top, key=lambda pair: -pair[1])[:most])


@dataclass(frozen=True)
class _Probe:
    """Small requests to one model."""

    connection: Connection
    model: str

    async def shows(
        self, endpoint: str, asked: dict[str, Any], proof: Callable[[dict[str, Any], str], bool]
    ) -> bool:
        """True if an answer to `asked` is proof; False if it is refused or shows nothing."""
        said = "Write a word."
        prompt = {"messages": [{"role": "user", "content": said}]}
        body = {
            "model": self.model,
            "max_tokens": 16,
            "temperature": 0,
            **(prompt if endpoint == CHAT else {"prompt": said}),
            **asked,
        }
        try:
            answer = await self.connection.post(f"/{endpoint}", body)
        except InferenceInputError:
            return False
        except ServerUnavailable as error:
            if error.status not in BROKEN:
                raise
            return False
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if endpoint == CHAT else choice["text"]
            return proof(choice, text or "")
        except (KeyError, IndexError, TypeError, ValueError):
            return False

    async def salts(self) -> bool:
        """True if the server reads the salt of its cache: it then refuses an empty one."""
        body = {"model": self.model, "prompt": "a", "max_tokens": 1, "cache_salt": ""}
        try:
            await self.connection.post("/completions", body)
        except InferenceInputError as error:
            return "cache_salt" in str(error)
        return False


async def probe(
    connection: Connection, model: str, endpoints: Iterable[str], extended: bool
) -> Offers:
    """Ask each endpoint; regex, EBNF and tenants are vLLM's additions, asked of those who know."""
    asker = _Probe(connection, model)
    grammars: set[tuple[str, Kind]] = set()
    speaking: set[str] = set()
    for endpoint in endpoints:
        wanted = {"logprobs": True, "top_logprobs": 1} if endpoint == CHAT else {"logprobs": 1}
        if await asker.shows(endpoint, {**wanted, "max_tokens": 1}, _speaks):
            speaking.add(endpoint)
        for grammar in _PROBES if extended else _PROBES[:1]:
            keeps = _is_json if grammar.kind == "json_schema" else _is_word
            if await asker.shows(endpoint, constraint(grammar), keeps):
                grammars.add((endpoint, grammar.kind))
    return Offers(frozenset(grammars), frozenset(speaking), extended and await asker.salts())


def _speaks(choice: dict[str, Any], text: str) -> bool:
    return all(row.top for row in logprobs(choice)) and bool(logprobs(choice))


def _is_json(choice: dict[str, Any], text: str) -> bool:
    return bool(json.loads(text) == {"a": "q"})


def _is_word(choice: dict[str, Any], text: str) -> bool:
    return text == "qz"
