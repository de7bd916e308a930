"""`ragwright models`: what the store knows and what it holds."""

from __future__ import annotations

import json

import click


@click.group()
def models() -> None:
    """List and fetch models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """Show the models that need no hub, and those in the cache."""
    from inference.models import list_models

    entries = list_models()
    if as_json:
        click.echo(json.dumps({"models": [entry.to_dict() for entry in entries]}))
        return
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        state = f"cached, {entry.size / 1e6:.0f} MB" if entry.size is not None else "not cached"
        licence = entry.license or "licence not stated"
        click.echo(f"{entry.name:<{width}}  {entry.description} ({licence}; {state})")
        if entry.path is not None:
            click.echo(f"{'':<{width}}  {entry.path}")


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(name: str, as_json: bool) -> None:
    """Fetch model NAME (a known name or a hub id) unless a verified copy is there."""
    from inference.models import list_models, resolve

    path = str(resolve(name))
    if not as_json:
        click.echo(path)
        return
    entry = next((entry for entry in list_models() if entry.path == path), None)
    facts = entry.to_dict() if entry else {"name": name, "cached": False, "path": path}
    click.echo(json.dumps(facts))
