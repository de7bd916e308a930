"""`ragwright allocate`: fit, check and use the computation allocation model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from agents.allocation_check import Pick

FILE = click.Path(path_type=Path)


@click.group()
def allocate() -> None:
    """Choose documents k, demonstrations m and iterations n for a budget of input tokens."""


@allocate.command()
@click.argument("folders", nargs=-1, required=True, type=FILE)
@click.option("--out", required=True, type=FILE, help="File of the rows; an old one is replaced.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rows(folders: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write the rows of finished evaluations (FOLDERS of `ragwright eval --out`).

    Of each, runs of `drag` and `iter_drag` are taken, with the k, demonstrations and iterations
    they were given. A third of the questions each is part dev, a and b.
    """
    from api.evaluation.allocating import allocation_rows

    found = allocation_rows(folders)
    _write(out, "".join(json.dumps(row) + "\n" for row in found.rows))
    datasets = sorted({row["dataset"] for row in found.rows})
    left_out = [
        {"dataset": dataset, "strategy": strategy, "k": k, "m": m, "n": n, "why": why}
        for (dataset, strategy, (k, m, n)), why in found.left_out.items()
    ]
    if as_json:
        told = {"rows": str(out), "count": len(found.rows), "datasets": datasets}
        click.echo(json.dumps({**told, "left_out": left_out}))
        return
    for one in left_out:
        theta = f"k={one['k']}, m={one['m']}, n={one['n']}"
        click.echo(f"left out: {one['strategy']} {theta} on {one['dataset']}: {one['why']}")
    click.echo(f"wrote {len(found.rows)} rows of {len(datasets)} datasets to {out}")


@allocate.command()
@click.argument("rows", type=FILE)
@click.option("--out", required=True, type=FILE, help="File of the model; an old one is replaced.")
@click.option("--metric", default="em", show_default=True, help="Metric of the rows to fit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit(rows: Path, out: Path, metric: str, as_json: bool) -> None:
    """Fit the model to evaluation ROWS (JSONL): half a, with i of the dev rows."""
    from agents import allocation
    from agents.allocation_rows import cells, read_rows

    model = allocation.fit(cells(read_rows(rows)), metric)
    _write(out, model.to_json() + "\n")
    told = model.regression
    if as_json:
        click.echo(json.dumps({"model": str(out), **asdict(model)}))
        return
    click.echo(f"a = {_numbers(told.a)}, b = {_numbers((*told.b, 0.0))}, c = {told.c:.3f}")
    click.echo(
        f"in-sample R2 {told.r2:.3f}, MSE {told.mse:.3f} over {told.rows} rows of "
        f"{len(model.datasets)} datasets; {told.clipped} clipped, none dropped"
    )
    if told.rank < 6:
        click.echo(
            f"the rows determine {told.rank} of 6 numbers (b needs several "
            "datasets, a3 several n); the rest is the least that fits",
            err=True,
        )
    click.echo(f"wrote {out}; judge it with `ragwright allocate check`, not by its R2")


@allocate.command()
@click.argument("model", type=FILE)
@click.argument("rows", type=FILE)
@click.option("--budget", required=True, type=click.IntRange(min=1), help="Input tokens per query.")
@click.option("--dataset", required=True, help="The task, as its dev ROWS name it.")
@click.option("--strategy", type=click.Choice(["drag", "iter_drag"]), help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def choose(
    model: Path, rows: Path, budget: int, dataset: str, strategy: str | None, as_json: bool
) -> None:
    """Choose k, m and n for a task by a fitted MODEL and the task's dev ROWS.

    The rows are the three base configurations (0,0,1), (1,0,1), (0,1,1) with scores, for each
    strategy, and lengths (score may be null) at enough others to fit the length of a query.
    """
    from agents import allocation
    from agents.allocation_rows import AllocationError, cells, read_rows

    try:
        text = model.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AllocationError(f"{model} cannot be read: {error}") from None
    fitted = allocation.Model.from_json(text)
    strategies = list(fitted.grid) if strategy is None else [strategy]
    given = allocation.tasks(cells(read_rows(rows)), dataset, fitted.metric, strategies)
    choice = allocation.choose(fitted, given, budget)
    if as_json:
        click.echo(json.dumps(asdict(choice)))
        return
    click.echo(
        f"{choice.strategy} with k={choice.k}, m={choice.m}, n={choice.n}: at most "
        f"{choice.length:.0f} of {budget} input tokens, predicted z {choice.z:.2f}"
    )
    iterations = f" --input iterations={choice.n}" if choice.strategy == "iter_drag" else ""
    click.echo(
        f"ragwright run {choice.strategy} --input k={choice.k} --input demonstrations={choice.m}"
        f"{iterations} --docs DOCS --question TEXT"
    )


@allocate.command()
@click.argument("rows", type=FILE)
@click.option(
    "--budget", "budgets", required=True, multiple=True, type=click.IntRange(min=1),
    help="Input tokens per query; repeatable.",
)  # fmt: skip
@click.option("--metric", default="em", show_default=True, help="Metric of the rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(rows: Path, budgets: tuple[int, ...], metric: str, as_json: bool) -> None:
    """Leave one dataset out, choose for it, and score the choice on half b of ROWS."""
    from agents.allocation_check import leave_one_out
    from agents.allocation_rows import cells, read_rows

    trials = leave_one_out(cells(read_rows(rows)), metric, budgets)
    if as_json:
        click.echo(json.dumps({"metric": metric, "trials": [each.to_dict() for each in trials]}))
        return
    for each in trials:
        click.echo(f"{each.dataset}, {each.budget} tokens:")
        if each.chosen is None:
            click.echo("  nothing is predicted to fit")
            continue
        for name, pick in (
            ("chosen", each.chosen),
            ("baseline", each.baseline),
            ("oracle", each.oracle),
        ):
            click.echo(f"  {name:<9}{_pick(pick)}")
        click.echo(f"  regret   {each.regret:.3f} (best of half b itself: {each.ceiling:.3f})")


def _write(out: Path, text: str) -> None:
    from agents.allocation_rows import AllocationError

    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AllocationError(f"--out {out} cannot be written: {error}") from None


def _pick(pick: Pick | None) -> str:
    if pick is None:
        return "nothing that fits was measured on all other datasets"
    k, m, n = pick.theta
    over = ", over budget" if pick.over_budget else ""
    return (
        f"{pick.strategy} k={k} m={m} n={n}: {pick.score:.3f}, longest query {pick.length} tokens"
        f"{over}"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
