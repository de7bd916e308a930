"""`ragwright graph`: build, extend, search and look into a knowledge graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from graphs.build import GraphReport
    from graphs.store import GraphStore

DIR = click.Path(path_type=Path)


@click.group()
def graph() -> None:
    """Build, extend, search and look into a knowledge graph."""


@graph.command()
@click.argument("files", nargs=-1, required=True, type=DIR)
@click.option("--out", required=True, type=DIR, help="Folder of the graph; an old one is replaced.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(files: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Make a graph of FILES or folders: triples (.tsv), RDF (.ttl .nt), GraphML (.graphml)."""
    from graphs.build import build_graph

    _print_report(build_graph(_loaded(files), out), as_json)


@graph.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.argument("files", nargs=-1, required=True, type=DIR)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def add(folder: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Add the facts of FILES to the graph DIR."""
    from graphs.build import add_facts

    _print_report(add_facts(folder, _loaded(files)), as_json)


@graph.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.argument("query")
@click.option("-k", type=int, help="Facts (default 5).")
@click.option("--hops", type=click.IntRange(1, 4), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def search(folder: Path, query: str, k: int | None, hops: int, as_json: bool) -> None:
    """Search the graph DIR for facts around the entities that QUERY mentions."""
    from api.cli.index import print_hit
    from graphs.retriever import GraphRetriever
    from graphs.table import GraphConfig

    retriever = GraphRetriever.open(folder, hops=hops)
    links = retriever.store.link(query, retriever.links)
    (hits,) = retriever.search([query], GraphConfig().k if k is None else k)
    if as_json:
        found = {"id": "0", "query": query, "linked": [link.to_dict() for link in links]}
        _print({"results": [{**found, "hits": [hit.to_dict() for hit in hits]}]})
        return
    for link in links:
        click.echo(f"{link.mention!r} is {link.entity} ({link.how}, {link.score:.2f})")
    for rank, hit in enumerate(hits, start=1):
        print_hit(rank, hit)


@graph.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.argument("entity", required=False)
@click.option("--to", help="Paths from ENTITY to this one.")
@click.option("--hops", type=click.IntRange(1, 8), help="Facts of a walk (default 1; paths 4).")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(
    folder: Path, entity: str | None, to: str | None, hops: int | None, limit: int, as_json: bool
) -> None:
    """Show what the graph DIR holds, the facts around ENTITY, or paths to another one."""
    from graphs.store import GraphStore

    if to is not None and entity is None:
        raise click.UsageError("give an ENTITY from which the paths start")
    store = GraphStore.open(folder)
    if entity is None:
        shown = _summary(store)
    elif to is None:
        shown = _around(store, entity, hops or 1, limit)
    else:
        shown = _between(store, entity, to, hops or 4, limit)
    if as_json:
        _print(shown)
    else:
        _tell(shown)


def _summary(store: GraphStore) -> dict[str, Any]:
    manifest = store.manifest
    return {
        "triples": manifest.triples,
        "entities": manifest.entities,
        "relations": manifest.relations,
    }


def _around(store: GraphStore, mention: str, hops: int, limit: int) -> dict[str, Any]:
    match = store.entity(mention)
    found = store.neighbours(match.entity, hops, limit)
    facts = [{**store.describe(near.row), "hop": near.hop} for near in found.near]
    return {"entity": match.to_dict(), "facts": facts, "complete": found.complete}


def _between(store: GraphStore, start: str, goal: str, hops: int, limit: int) -> dict[str, Any]:
    one, other = store.entity(start), store.entity(goal)
    found = store.paths(one.entity, other.entity, hops, limit)
    return {
        "from": one.to_dict(),
        "to": other.to_dict(),
        "paths": [store.describe_path(path) for path in found.paths],
        "complete": found.complete,
    }


def _tell(shown: dict[str, Any]) -> None:
    """The same for people."""
    if "relations" in shown:
        click.echo(f"{shown['triples']} facts about {shown['entities']} entities")
        for relation, count in shown["relations"].items():
            click.echo(f"{count:8}  {relation}")
    for fact in shown.get("facts", ()):
        click.echo(f"{fact['hop']:3}  {fact['text']}  ({fact['source']}:{fact['line']})")
    for path in shown.get("paths", ()):
        click.echo(f"{path['length']:3}  " + "; ".join(fact["text"] for fact in path["facts"]))
    if shown.get("paths") == []:
        click.echo("no path within these hops")
    if not shown.get("complete", True):
        click.echo("     ... and more")


def _loaded(files: tuple[Path, ...]) -> Any:
    """The facts of several files as of one; every fault of all of them at once."""
    from graphs.errors import BadTriples
    from graphs.loaders import Loaded, load

    whole, faults = Loaded(), list[str]()
    for file in files:
        try:
            one = load(file)
        except BadTriples as error:
            faults += error.faults
            continue
        whole.facts += one.facts
        for entity, names in one.names.items():
            whole.names.setdefault(entity, []).extend(names)
    if faults:
        raise BadTriples(faults)
    return whole


def _print(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def _print_report(report: GraphReport, as_json: bool) -> None:
    if as_json:
        _print(report.to_dict())
        return
    click.echo(
        f"{report.graph}: {report.triples} facts about {report.entities} entities "
        f"({report.added} added, {report.duplicates} known already) in {report.seconds:.1f} s"
    )
