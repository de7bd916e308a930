"""`ragwright jobs`: what became of queued runs, and what an owner can do about them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from api.jobs.job import Job
    from api.jobs.redis_queue import RedisQueue

T = TypeVar("T")

STATES = ("queued", "running", "waiting", "interrupted", "completed", "failed", "cancelled")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def jobs() -> None:
    """Look after queued runs; `ragwright submit` makes them, `ragwright worker` runs them."""


@jobs.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--dead", is_flag=True, help="The dead-letter list: jobs whose last try failed.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="Where the next page begins, as the page before said.")
@json_option
def list_jobs(state: str | None, dead: bool, limit: int, cursor: str | None, as_json: bool) -> None:
    """List jobs, newest first."""
    from api.jobs.job import JobState
    from workflows.errors import WorkflowInputError

    if dead and state is not None:
        raise WorkflowInputError("--dead and --state name two lists; give one of them")
    name = "failed" if dead else state
    chosen = None if name is None else JobState(name)
    found, more = _ask(lambda queue: queue.list(state=chosen, limit=limit, cursor=cursor))
    if as_json:
        _print({"data": [job.to_dict(brief=True) for job in found], "next": more})
        return
    for job in found:
        problem = f"  {job.error['message']}" if job.error else ""
        click.echo(
            f"{job.id}  {job.state.value:<11} {_clock(job.submitted_at)}  "
            f"{job.manifest['workflow']}{problem}"
        )
    if more is not None:
        click.echo(f"more: ragwright jobs list --cursor {more}", err=True)


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
def show(job_id: str, as_json: bool) -> None:
    """Show one job: state, attempts, what it asks, its result."""
    _show(_ask(lambda queue: queue.get(job_id)), as_json)


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
def cancel(job_id: str, as_json: bool) -> None:
    """End a job; one that runs stops within two seconds."""
    _show(_ask(lambda queue: queue.cancel(job_id)), as_json)


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
def retry(job_id: str, as_json: bool) -> None:
    """Queue a failed job again; it goes on at its last finished step."""
    _show(_ask(lambda queue: queue.retry(job_id)), as_json)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option(
    "--answer", "texts", multiple=True, metavar="[ID=]TEXT", help="An answer; repeatable."
)
@click.option("--budget", "limits", multiple=True, metavar="KEY=VALUE", help="A higher limit.")
@json_option
def resume(job_id: str, texts: Sequence[str], limits: Sequence[str], as_json: bool) -> None:
    """Answer a job that waits, or raise the budget of one that was interrupted."""
    from api.cli.run import budget_of
    from workflows.answers import read_answers

    budget = budget_of(limits)

    async def answer(queue: RedisQueue) -> Job:
        answers = read_answers((await queue.get(job_id)).asks, texts)
        return await queue.resume(job_id, answers=answers, budget=budget)

    _show(_ask(answer), as_json)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--seconds", type=click.FloatRange(min=0), help="Wait no longer than this.")
@json_option
def wait(job_id: str, seconds: float | None, as_json: bool) -> None:
    """Wait until a job rests and print its result; progress shows on a terminal.

    Exit status: 0 completed, 1 anything else, 2 bad input.
    """
    try:
        job = _ask(lambda queue: follow(queue, job_id, seconds))
    except TimeoutError:
        click.echo(f"ragwright: job {job_id} does not rest after {seconds:g} s", err=True)
        sys.exit(1)
    sys.exit(conclude(job, as_json))


async def follow(queue: RedisQueue, job_id: str, seconds: float | None = None) -> Job:
    """The job when it rests; on a terminal each step is told meanwhile. Raises TimeoutError."""
    if not sys.stderr.isatty():
        return await queue.wait(job_id, seconds=seconds)
    async with asyncio.timeout(seconds), aclosing(queue.events(job_id)) as events:
        async for event in events:
            if line := _line(event.data):
                click.echo(line, err=True)
    return await queue.get(job_id)


def conclude(job: Job, as_json: bool) -> int:
    """Print what a resting job came to; the exit status."""
    from api.cli.account import Account
    from workflows.runtime import RunResult, RunStatus

    state = job.state.value
    if as_json:
        _print(job.to_dict())
    elif job.result is not None:
        # What is wrong or asked is told below, with a job's remedy instead of a run's.
        plain: dict[str, Any] = {
            "status": RunStatus(job.result["status"]),
            "error": None,
            "asks": [],
        }
        Account(quiet=True).conclude(RunResult(**{**job.result, **plain}))
    if not as_json and state != "completed":
        told = [f"job {job.id} is {state}", *([job.error["message"]] if job.error else ())]
        told += [f"it asks {ask['id']!r}: {_shown(ask)}" for ask in job.asks]
        click.echo(f"ragwright: {'; '.join(told)}", err=True)
    return 0 if state == "completed" else 1


def _ask(question: Callable[[RedisQueue], Awaitable[T]]) -> T:
    """The answer of the queue to one question."""
    from api.cli.queues import queue_url, settings_of
    from api.jobs.redis_queue import RedisQueue

    settings = settings_of()
    url = queue_url(settings)

    async def ask() -> T:
        async with RedisQueue.open(settings, url) as queue:
            return await question(queue)

    return asyncio.run(ask())


def _show(job: Job, as_json: bool) -> None:
    if as_json:
        _print(job.to_dict())
        return
    click.echo(f"{job.id}  {job.state.value}, attempt {job.attempt}, {job.priority} priority")
    click.echo(f"  workflow   {job.manifest['workflow']}")
    click.echo(f"  submitted  {_clock(job.submitted_at)}")
    for name, moment in (("started", job.started_at), ("finished", job.finished_at)):
        if moment is not None:
            click.echo(f"  {name:<10} {_clock(moment)}")
    if job.cancel_requested and job.state.value == "running":
        click.echo("  cancel     requested")
    for ask in job.asks:
        click.echo(f"  asks       {ask['id']}: {_shown(ask)}")
    if job.error is not None:
        click.echo(f"  error      {job.error['code']}: {job.error['message']}")
    for name, value in (job.result or {}).get("outputs", {}).items():
        click.echo(f"  {name}: {value if isinstance(value, str) else json.dumps(value)}")


def _line(event: Any) -> str | None:
    if event["type"] == "job" and "state" in event:
        return f"job is {event['state']}"
    if event["type"] == "step_finished":
        return f"  {event['node']} ({event['kind']}, {event['seconds']:.1f} s)"
    return None


def _shown(ask: Any) -> str:
    rest = {name: value for name, value in ask.items() if name not in ("id", "node")}
    return json.dumps(rest, ensure_ascii=False)


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
