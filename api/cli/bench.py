"""`ragwright bench`: measure speed against named peers in the same run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
BENCHES = ROOT / "tests" / "bench"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--only", multiple=True, metavar="ROW", help="Run this row; may be repeated.")
@click.option("--n", type=click.IntRange(min=1), help="Measurements of a row.")
@click.option("--drafter", multiple=True, metavar="SPEC", help="Measure this one; may be repeated.")
@click.option("--tokens", type=click.IntRange(min=1), help="Most tokens of an answer.")
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep each answer in this file, and go on behind those it holds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    names: tuple[str, ...],
    only: tuple[str, ...],
    n: int | None,
    drafter: tuple[str, ...],
    tokens: int | None,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Run the benchmarks NAMES and print each figure beside its peer's.

    Without a name the known ones are listed. A ratio above 1 means that we are better.
    """
    from inference.errors import UnknownName
    from inference.suggest import nearest

    known = _known()
    if not names:
        click.echo(json.dumps({"benches": known}) if as_json else "\n".join(known))
        return
    for name in names:
        if name not in known:
            raise UnknownName(f"unknown benchmark {name!r}; {nearest(name, known)}")
    options = [part for row in only for part in ("--only", row)]
    options += [part for spec in drafter for part in ("--drafter", spec)]
    options += [] if n is None else ["--n", str(n)]
    options += [] if tokens is None else ["--tokens", str(tokens)]
    options += [] if resume is None else ["--resume", str(resume.resolve())]
    reports = [_report(name, options) for name in names]
    if as_json:
        click.echo(json.dumps(reports[0] if len(reports) == 1 else {"benches": reports}))
        return
    for report in reports:
        _table(report)


def _known() -> list[str]:
    from inference.errors import InferenceInputError

    if not BENCHES.is_dir():
        raise InferenceInputError(
            f"no benchmarks under {BENCHES}; they come with a source checkout, run from there"
        )
    return sorted(
        file.stem
        for file in BENCHES.glob("*.py")
        if "\ndef run(" in file.read_text(encoding="utf-8")
    )


def _report(name: str, options: list[str]) -> dict[str, Any]:
    """The report of one benchmark, run in a process of its own so that none disturbs the next."""
    from inference.errors import InferenceError

    command = [sys.executable, "-m", "tests.bench", name, *options]
    with _together():
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode == 2:  # bad input, which it has named on standard error
        raise click.exceptions.Exit(2)
    if done.returncode:
        raise InferenceError(f"benchmark {name!r} failed with exit status {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@contextmanager
def _together() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that what it waits for ends with it.

    A benchmark left behind would take its time from the next one.
    """
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _table(report: dict[str, Any]) -> None:
    machine = report["machine"]
    click.echo(f"{report['bench']} on {machine['processor']}, {machine['cores']} cores")
    for figure in report["figures"]:
        line = f"  {figure['name']:<32} {_number(figure['value']):>10} {figure['unit']:<12}"
        if figure["peer"]:
            line += f" {figure['peer']}: {_number(figure['peer_value'])}"
            line += f", ratio {_number(figure['ratio'])}"
        spread = "" if figure["spread"] is None else f", spread {_number(figure['spread'])}"
        click.echo(f"{line} (n={figure['n']}{spread})")


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
