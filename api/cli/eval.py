"""`ragwright eval`: workflows over a set of questions, compared in one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from api.evaluation.plan import Order, Plan
    from api.evaluation.results import Results, Row

FOLDER = click.Path(path_type=Path)


@click.command(name="eval")
@click.argument("suite", required=False)
@click.option("--workflow", "labels", multiple=True, metavar="NAME[:INPUT=VALUE,...]")
@click.option("--docs", type=FOLDER, help="Documents of a .jsonl file of questions.")
@click.option("--engine", help="Use this engine instead of the workflows' own.")
@click.option("--model", help="Use this model instead of the workflows' own.")
@click.option("--limit", type=click.IntRange(min=1), help="Questions, spread over the suite.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--at-once", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--out", type=FOLDER, help="Folder of the results; made up if left out.")
@click.option("--resume", is_flag=True, help="Go on behind the finished rows of --out.")
@click.option("--again", type=FOLDER, metavar="MANIFEST", help="Run what a manifest says again.")
@click.option("--retriever", "retrievers", multiple=True, metavar="NAME", help="Rank documents.")
@click.option("-k", "ks", type=click.IntRange(min=1), multiple=True, help="Cut-offs of a ranking.")
@click.option("--report", type=FOLDER, help="Write an HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def eval_(as_json: bool, report: Path | None, **options: Any) -> None:
    """Run workflows over SUITE and compare them: quality, reading and cost, with intervals.

    SUITE is sample, hotpotqa or synthetic-hops, with options as NAME:OPTION=VALUE, or a .jsonl
    file of id, question, answer. @count and @passages as inputs refer to what the first workflow
    read. Exit status: 0 completed (failed questions are counted), 2 bad input, 130 interrupted.
    """
    from api.evaluation.report import page
    from api.evaluation.table import text_of

    _require_page(report)
    result = _ranked(options) if options["retrievers"] else _compared(options)
    if report is not None:
        report.write_text(page(result), encoding="utf-8", errors="replace")
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    click.echo(text_of(result))
    if "again" in result:
        same = result["again"]
        click.echo(f"\n{same['identical']} of {same['rows']} answers as in {same['folder']}")


def _require_page(report: Path | None) -> None:
    from api.evaluation.errors import EvaluationInputError

    if report is not None and (report.is_dir() or not report.absolute().parent.is_dir()):
        raise EvaluationInputError(f"--report {report}: no file can be there; choose another")


def _ranked(options: dict[str, Any]) -> dict[str, Any]:
    from api.cli.progress import build_progress
    from api.evaluation.errors import EvaluationInputError
    from api.evaluation.retrieving import rank_suite

    runs = ("labels", "engine", "model", "out", "resume", "again")
    if options["suite"] is None or any(options[name] for name in runs):
        raise EvaluationInputError(
            "--retriever ranks the documents of a SUITE; no workflow runs then, so give it "
            "without --workflow, --engine, --model, --out, --resume and --again"
        )
    with build_progress() as progress:
        return rank_suite(
            options["suite"],
            options["docs"],
            options["retrievers"],
            sorted(set(options["ks"])) or [1, 5, 10],
            limit=options["limit"],
            seed=options["seed"],
            progress=progress,
        )


def _compared(options: dict[str, Any]) -> dict[str, Any]:
    from api.cli.progress import build_progress
    from api.evaluation.manifest import manifest_of, read_order, require_same
    from api.evaluation.plan import make_plan
    from api.evaluation.results import Results
    from api.evaluation.summary import summarise

    order = _order(options)
    with build_progress() as progress:
        plan = make_plan(order, progress)
    manifest = json.loads(json.dumps(manifest_of(plan)))
    if options["again"] is not None:
        require_same(read_order(options["again"])[1], manifest, options["again"])
    with Results.working(options["out"], manifest, resume=options["resume"]) as results:
        click.echo(f"results in {results.folder}", err=True)
        _evaluate(plan, results)
        result = summarise(plan, results.rows, str(results.folder))
        if options["again"] is not None:
            result["again"] = _again(options["again"], results)
        results.conclude(result)
    return result


def _order(options: dict[str, Any]) -> Order:
    from api.evaluation.errors import EvaluationInputError
    from api.evaluation.manifest import read_order
    from api.evaluation.plan import DEFAULT, Order

    if options["ks"]:
        raise EvaluationInputError("-k is the cut-off of a ranking; give --retriever NAME with it")
    names = ("docs", "engine", "model", "limit")
    if options["again"] is not None:
        if options["suite"] or options["labels"] or any(options[name] for name in names):
            raise EvaluationInputError(
                "--again takes suite, workflows and options from the manifest; leave them out"
            )
        return read_order(options["again"])[0]
    if options["suite"] is None:
        raise EvaluationInputError(
            "give a SUITE: sample, hotpotqa, synthetic-hops or a .jsonl file of questions"
        )
    return Order(
        options["suite"],
        options["labels"] or DEFAULT,
        docs=None if options["docs"] is None else str(options["docs"]),
        engine=options["engine"],
        model=options["model"],
        limit=options["limit"],
        seed=options["seed"],
        at_once=options["at_once"],
    )


def _evaluate(plan: Plan, results: Results) -> None:
    """Run what is missing; Ctrl-C keeps what was finished and says how to go on."""
    import asyncio

    from api.evaluation.running import evaluate

    try:
        with _bar(plan, results) as told:
            asyncio.run(evaluate(plan, results, told))
    except KeyboardInterrupt:
        click.echo(
            f"ragwright: stopped; {len(results.rows)} of {plan.rows} rows are kept; go on with: "
            f"{plan.order.command(results.folder)}",
            err=True,
        )
        raise click.exceptions.Exit(130) from None


@contextmanager
def _bar(plan: Plan, results: Results) -> Iterator[Callable[[Row], None]]:
    """A bar on standard error where that is a terminal, else one line a row."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    done = len(results.rows)
    with tqdm(
        total=plan.rows, initial=done, unit=" runs", file=sys.stderr, disable=not live
    ) as bar:

        def told(row: Row) -> None:
            bar.update(1)
            if not live:
                end = "failed" if row.error else f"F1 {row.f1:.2f}"
                place = f"{len(results.rows)}/{plan.rows}"
                click.echo(f"{place} {row.workflow} {row.question}: {end}", err=True)

        yield told


def _again(manifest: Path, results: Results) -> dict[str, Any]:
    """How many answers are those that lie beside the manifest."""
    from api.evaluation.results import ROWS, read_rows

    before, _ = read_rows(manifest.parent / ROWS)
    same = sum(
        key in before and before[key].answer == row.answer for key, row in results.rows.items()
    )
    return {"folder": str(manifest.parent), "rows": len(before), "identical": same}
