"""`ragwright keys`: who may use the HTTP API, and for what."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from api.http.keys import Key, KeyStore

T = TypeVar("T")

SCOPES = ("runs", "infer", "read", "write", "admin")


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys."""


@keys.command()
@click.option("--tenant", required=True, help="Whose runs, indexes and graphs the key opens.")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Repeatable; default: all."
)
@click.option("--note", default="", help="What the key is for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def create(tenant: str, scopes: tuple[str, ...], note: str, as_json: bool) -> None:
    """Make a key; it is shown once, and only its hash is kept."""
    from api.http.keys import Scope

    chosen = [Scope(scope) for scope in scopes] or list(Scope)
    _show_made(*_with_keys(lambda store: store.create(tenant, chosen, note)), as_json)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(as_json: bool) -> None:
    """Show all keys without their secrets."""
    found = _with_keys(lambda store: store.list())
    if as_json:
        _print_json({"keys": [key.to_dict() for key in found]})
        return
    for key in found:
        click.echo(f"{key.id}  {_state(key):<9}  {key.tenant}  {','.join(key.scopes)}  {key.note}")


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def revoke(key_id: str, as_json: bool) -> None:
    """End a key at once."""
    key = _with_keys(lambda store: store.revoke(key_id))
    if as_json:
        _print_json(key.to_dict())
    else:
        click.echo(f"{key.id} is revoked")


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--overlap",
    type=click.FloatRange(0, 365 * 86400),
    default=86400.0,
    show_default=True,
    help="Seconds for which the old key still works.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rotate(key_id: str, overlap: float, as_json: bool) -> None:
    """Make a key in place of another, with its tenant and scopes."""
    _show_made(*_with_keys(lambda store: store.rotate(key_id, overlap)), as_json)


def _with_keys(work: Callable[[KeyStore], Awaitable[T]]) -> T:
    """Do something with the keys of the server that the settings name, or that runs here."""
    import asyncio

    from api.cli.queues import queue_url, settings_of
    from api.http.keys import KeyStore
    from api.http.store import connect

    settings = settings_of()
    url = queue_url(settings)

    async def inner() -> T:
        async with connect(url) as redis:
            return await work(KeyStore(redis, settings.namespace))

    return asyncio.run(inner())


def _show_made(key: Key, text: str, as_json: bool) -> None:
    if as_json:
        _print_json({**key.to_dict(), "key": text})
    else:
        click.echo(text)


def _state(key: Key) -> str:
    import time

    if key.revoked_at is not None:
        return "revoked"
    if not key.works(time.time()):
        return "expired"
    return "expiring" if key.expires_at is not None else "works"


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
