"""The account of a run for a person: one entry a step as it ends, then answer and sources."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import click
from tqdm import tqdm

from workflows.events import Event, RunStarted, StepFinished, StepStarted, TextDelta
from workflows.runtime import RunResult

WIDTH = 96


class Account:
    """A sink that prints steps to standard output and progress to standard error.

    `quiet` prints no steps; progress shows on a terminal only, so `live` is False elsewhere.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty()
        self._bar: Any = None
        self._count = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStarted) and self.live:
            self._bar = tqdm(desc=event.node, unit=" pieces", leave=False, file=sys.stderr)
        elif isinstance(event, TextDelta) and self._bar is not None:
            self._bar.update(1)
        elif isinstance(event, StepFinished):
            self.close()
            if not self.quiet:
                self._step(event)
        elif isinstance(event, RunStarted) and not self.quiet:
            again = " (resumed)" if event.resumed else ""
            click.echo(f"{event.workflow}, run {event.run_id}{again}\n")

    def close(self) -> None:
        """Remove the progress line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _step(self, step: StepFinished) -> None:
        self._count += 1
        click.echo(f"{self._count:3}. {step.node}  ({', '.join(_costs(step))})")
        short: list[tuple[str, str]] = []
        long: list[tuple[str, str]] = []
        for name, value in step.notes.items():
            text = " ".join(_text(value).split())
            if not text:
                continue
            label = name.replace("_", " ")
            (long if len(text) > 24 or name in ("text", "query") else short).append((label, text))
        if short:
            _paragraph(", ".join(f"{label} {text}" for label, text in short))
        for label, text in long:
            _paragraph(f"{label}: {textwrap.shorten(text, 600, placeholder=' ...')}")
        if step.error is not None:
            _paragraph(f"failed: {step.error['message']}")

    def conclude(self, result: RunResult) -> None:
        """Print the outputs, the sources and what the run cost."""
        click.echo()
        outputs = dict(result.outputs)
        citations = outputs.pop("citations", None)
        answer = outputs.pop("answer", None)
        if answer is not None:
            click.secho(f"Answer: {answer}", bold=True)
        for name, value in outputs.items():
            click.echo(f"  {name.replace('_', ' ')}: {_text(value)}")
        if isinstance(citations, list) and citations:
            click.echo("\nSources")
            for number, citation in enumerate(citations, start=1):
                _source(number, citation)
        used = result.usage
        click.echo(
            f"\n{used['model_calls']} model calls, {used['retrievals']} retrievals, "
            f"{used['prompt_tokens']} prompt tokens ({used['cached_tokens']} cached), "
            f"{used['completion_tokens']} generated, {used['seconds']:.1f} s"
        )
        for ask in result.asks:
            _waiting(result.run_id, ask)
        if result.error is not None:
            remedy = f"; go on with: ragwright run --resume {result.run_id}"
            click.echo(
                f"ragwright: run {result.status.value}: {result.error['message']}{remedy}", err=True
            )


def _waiting(run_id: str, ask: dict[str, Any]) -> None:
    click.secho(f"\n{ask['node']} asks: {_text(ask['ask'])}", bold=True)
    if ask.get("choices"):
        click.echo(f"  one of: {_text(ask['choices'])}")
    click.echo(f"  answer with: ragwright run --resume {run_id} --answer {ask['id']}=ANSWER")


def _costs(step: StepFinished) -> list[str]:
    costs = [step.kind, f"{step.seconds:.1f} s"]
    used = step.usage
    if used.model_calls:
        costs.append(f"{used.prompt_tokens} prompt tokens, {used.cached_tokens} cached")
        costs.append(f"{used.completion_tokens} generated")
    return costs


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "none"
    return str(value)


def _paragraph(text: str) -> None:
    click.echo(textwrap.fill(text, WIDTH, initial_indent="     ", subsequent_indent="       "))


def _source(number: int, citation: dict[str, Any]) -> None:
    place = f"{citation['source']}, characters {citation['start']}-{citation['end']}"
    holds = " (contains the answer)" if citation.get("contains_answer") else ""
    click.echo(f" [{number}] {citation['title']}{holds}\n     {place}")
    excerpt = textwrap.shorten(" ".join(citation["text"].split()), 240, placeholder=" ...")
    _paragraph(f'"{excerpt}"')
