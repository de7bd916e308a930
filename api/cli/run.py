"""`ragwright run`: run a workflow, show each step as it ends, print the answer and its sources."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("workflow", required=False)
@click.option("--question", help="The question; the same as --input question=TEXT.")
@click.option("--input", "pairs", multiple=True, metavar="KEY=VALUE", help="An input; repeatable.")
@click.option("--docs", type=click.Path(path_type=Path), help="Documents: a file or a folder.")
@click.option("--index", type=click.Path(path_type=Path), help="A folder from `index build`.")
@click.option(
    "--graph",
    type=click.Path(path_type=Path),
    help="A graph: .tsv .ttl .nt .graphml, or a built one.",
)
@click.option("--engine", help="Use this engine instead of the workflow's.")
@click.option("--model", help="Use this model instead of the workflow's.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--budget", "limits", multiple=True, metavar="KEY=VALUE", help="tokens, seconds ...")
@click.option("--run-id", help="Name of the run; made up if left out.")
@click.option("--resume", metavar="RUN_ID", help="Go on with an interrupted run.")
@click.option("--answer", "answers", multiple=True, metavar="[ID=]TEXT", help="With --resume.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write every event as JSONL.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(workflow: str | None, **options: Any) -> None:
    """Run WORKFLOW: a shipped name (`ragwright workflows list`) or a path to a YAML file.

    Exit status: 0 completed, 1 the run did not complete, 2 bad input.
    """
    import asyncio

    from api.cli.account import Account
    from api.cli.progress import build_progress
    from workflows.errors import WorkflowInputError
    from workflows.runs import resume_run, start_run

    if (workflow is None) == (options["resume"] is None):
        raise WorkflowInputError("give a WORKFLOW to start a run, or --resume RUN_ID, one of them")
    if options["answers"] and options["resume"] is None:
        raise WorkflowInputError("--answer goes with --resume RUN_ID, the run that asked")
    if options["docs"] is not None and options["index"] is not None:
        raise WorkflowInputError("--docs and --index name two sources; give one of them")
    as_json, trace = options.pop("as_json"), options["trace"]
    account = Account(quiet=as_json)
    sinks: list[Any] = [account]
    handle = _open_trace(trace) if trace is not None else None
    with ExitStack() as closing:
        closing.callback(account.close)
        if handle is not None:
            closing.callback(handle.close)
            sinks.append(_trace_sink(handle))
        progress = closing.enter_context(build_progress())
        if options["resume"] is not None:
            job = resume_run(
                options["resume"],
                budget_of(options["limits"]),
                sinks,
                account.live,
                options["answers"],
            )
        else:
            assert workflow is not None
            job = start_run(order_of(workflow, options), sinks, account.live, progress)
        result = asyncio.run(job)
    if as_json:
        click.echo(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        account.conclude(result)
    sys.exit(0 if result.status.value == "completed" else 1)


def order_of(workflow: str, options: dict[str, Any]) -> Any:
    """What the options ask for, checked as far as it can be without the workflow."""
    from workflows.errors import WorkflowInputError
    from workflows.runs import RunOrder

    texts = pairs_of(options["pairs"], "--input")
    if options["question"] is not None:
        if "question" in texts:
            raise WorkflowInputError("the question is given twice, by --question and --input")
        texts["question"] = options["question"]
    return RunOrder(
        workflow,
        texts=texts,
        docs=options["docs"],
        index=options["index"],
        graph=options["graph"],
        engine=options["engine"],
        model=options["model"],
        seed=options["seed"],
        budget=budget_of(options["limits"]),
        run_id=options["run_id"],
    )


def pairs_of(pairs: Sequence[str], option: str) -> dict[str, str]:
    """Words of the form KEY=VALUE as a mapping; raises WorkflowInputError."""
    from workflows.errors import WorkflowInputError

    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise WorkflowInputError(f"{option} {pair!r} must have the form KEY=VALUE")
        if key in values:
            raise WorkflowInputError(f"{option} {key!r} is given twice")
        values[key] = value
    return values


def budget_of(pairs: Sequence[str]) -> dict[str, float] | None:
    """Limits given as KEY=VALUE, None where there are none; raises WorkflowInputError."""
    from inference.suggest import nearest
    from workflows.errors import WorkflowInputError

    kinds: dict[str, type] = {"tokens": int, "seconds": float, "retrievals": int}
    limits: dict[str, float] = {}
    for key, text in pairs_of(pairs, "--budget").items():
        if key not in kinds:
            raise WorkflowInputError(f"unknown budget {key!r}; {nearest(key, kinds)}")
        try:
            limits[key] = kinds[key](text)
        except ValueError:
            raise WorkflowInputError(f"--budget {key}={text!r} must be a number") from None
    return limits or None


def _open_trace(file: Path) -> Any:
    from workflows.errors import WorkflowInputError

    try:
        return file.open("w", encoding="utf-8")
    except OSError as error:
        raise WorkflowInputError(f"trace file {file}: {error.strerror}; choose another") from None


def _trace_sink(handle: Any) -> Any:
    def write(event: Any) -> None:
        if event.type not in ("text_delta", "tokens_produced"):
            handle.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
            handle.flush()

    return write
