"""`ragwright submit`: hand a run to the queue; workers run it, through kills and restarts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("workflow")
@click.option("--question", help="The question; the same as --input question=TEXT.")
@click.option("--input", "pairs", multiple=True, metavar="KEY=VALUE", help="An input; repeatable.")
@click.option("--docs", type=click.Path(path_type=Path), help="Documents: a file or a folder.")
@click.option("--index", type=click.Path(path_type=Path), help="A folder from `index build`.")
@click.option("--graph", type=click.Path(path_type=Path), help="A knowledge graph.")
@click.option("--engine", help="Use this engine instead of the workflow's.")
@click.option("--model", help="Use this model instead of the workflow's.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--budget", "limits", multiple=True, metavar="KEY=VALUE", help="tokens, seconds ...")
@click.option("--run-id", help="Name of the run and the job; made up if left out.")
@click.option(
    "--priority",
    type=click.Choice(["high", "normal", "low"]),
    default="normal",
    show_default=True,
)
@click.option("--key", help="Idempotency key: the same order under it is one job.")
@click.option(
    "--max-attempts",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="Tries of a run that fails in a way that may pass.",
)
@click.option("--wait", is_flag=True, help="Wait for the result and print it, as `run` does.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def submit(workflow: str, as_json: bool, wait: bool, **options: Any) -> None:
    """Queue a run of WORKFLOW and print its job's id; it is kept from then on.

    Index and documents must lie where the workers find them under the same path.
    Exit status: 0 accepted (with --wait: completed), 1 the run did not complete, 2 bad input.
    """
    import asyncio

    from api.cli.jobs import conclude, follow
    from api.cli.progress import build_progress
    from api.cli.queues import queue_url, settings_of
    from api.cli.run import order_of
    from api.jobs.redis_queue import RedisQueue
    from workflows.runs import prepare

    queued = {name: options.pop(name) for name in ("priority", "key", "max_attempts")}
    order = order_of(workflow, options)
    settings = settings_of()
    url = queue_url(settings)
    with build_progress() as progress:
        manifest = prepare(order, progress)

    async def hand_in() -> int:
        async with RedisQueue.open(settings, url) as queue:
            job = await queue.submit(manifest, **queued)
            if wait:
                return conclude(await follow(queue, job.id), as_json)
            facts = job.to_dict(brief=True)
            click.echo(json.dumps(facts, ensure_ascii=False) if as_json else job.id)
            return 0

    sys.exit(asyncio.run(hand_in()))
