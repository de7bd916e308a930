"""`ragwright index`: build, extend and search an index of documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from retrieval import Hit
    from retrieval.index import BuildReport

DIR = click.Path(path_type=Path)


@click.group()
def index() -> None:
    """Build, extend and search an index of documents."""


@index.command()
@click.argument("docs", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=DIR, help="Folder of the index; an old one is replaced.")
@click.option("--chunk-tokens", type=int, help="Longest passage, in tokens (32 to 254).")
@click.option("--overlap", type=int, help="Tokens that neighbouring passages share.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(
    docs: Path, out: Path, chunk_tokens: int | None, overlap: int | None, as_json: bool
) -> None:
    """Make an index of DOCS, a file or a folder of .txt .md .html .pdf .jsonl documents."""
    from api.cli.progress import build_progress
    from retrieval.index import build_index

    settings = _settings(chunk_tokens, overlap)
    with build_progress() as progress:
        report = build_index(docs, out, settings=settings, progress=progress)
    _print_report(report, as_json)


@index.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.argument("docs", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def add(folder: Path, docs: Path, as_json: bool) -> None:
    """Add DOCS to the index DIR; documents of the same id are replaced."""
    from api.cli.progress import build_progress
    from retrieval.index import add_documents

    with build_progress() as progress:
        report = add_documents(folder, docs, progress=progress)
    _print_report(report, as_json)


@index.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.argument("query", required=False)
@click.option("--queries", type=DIR, help="File with one query a line, or JSONL of id and query.")
@click.option("-k", type=int, help="Hits per query (default: the retriever's own, 5).")
@click.option("--retriever", default="hybrid", show_default=True, help="hybrid, dense or bm25.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def search(
    folder: Path,
    query: str | None,
    queries: Path | None,
    k: int | None,
    retriever: str,
    as_json: bool,
) -> None:
    """Search the index DIR for QUERY, or for every query of a file."""
    from retrieval.queries import read_queries
    from retrieval.table import retriever_config

    if (query is None) == (queries is None):
        raise click.UsageError("give either a QUERY or --queries FILE")
    asked = [("0", query)] if query is not None else read_queries(queries or Path())
    config = retriever_config(retriever)
    found = config.open(folder).search([text for _, text in asked], config.k if k is None else k)
    if as_json:
        results = [
            {"id": name, "query": text, "hits": [hit.to_dict() for hit in hits]}
            for (name, text), hits in zip(asked, found, strict=True)
        ]
        click.echo(json.dumps({"results": results}, ensure_ascii=False))
        return
    for (name, text), hits in zip(asked, found, strict=True):
        if queries is not None:
            click.echo(f"[{name}] {text}")
        for rank, hit in enumerate(hits, start=1):
            print_hit(rank, hit)


def _settings(tokens: int | None, overlap: int | None) -> Any:
    """Chunk settings from the options given, the defaults for the others."""
    from retrieval.chunking import chunk_settings

    given = {"tokens": tokens, "overlap": overlap}
    return chunk_settings({key: value for key, value in given.items() if value is not None})


def print_hit(rank: int, hit: Hit) -> None:
    """A hit in two lines: rank, score and place, then the text."""
    passage = hit.passage
    place = f"{passage.document_id} [{passage.start}:{passage.end}]"
    click.echo(f"{rank:3}. {hit.score:.4f}  {passage.title or passage.document_id}  ({place})")
    text = " ".join(passage.text.split())
    click.echo(f"     {text if len(text) <= 200 else text[:197] + '...'}")


def _print_report(report: BuildReport, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    removed = f", {report.removed} documents removed" if report.removed else ""
    click.echo(
        f"{report.index}: {report.documents} documents, {report.passages} passages "
        f"({report.embedded} embedded, {report.reused} reused{removed}) "
        f"in {report.seconds:.1f} s"
    )
