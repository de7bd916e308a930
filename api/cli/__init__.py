"""The `ragwright` command: one file per command, imported only when that command runs."""

from __future__ import annotations

import importlib
import sys

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("api.cli.run:run", "Run a workflow and print its answer."),
    "workflows": ("api.cli.workflows:workflows", "List, draw and validate workflows."),
    "generate": ("api.cli.generate:generate", "Generate text with the local engine."),
    "index": ("api.cli.index:index", "Build, extend and search an index of documents."),
    "graph": ("api.cli.graph:graph", "Build, extend and search a knowledge graph."),
    "models": ("api.cli.models:models", "List and fetch models."),
    "serve": ("api.cli.serve:serve", "Serve the HTTP API."),
    "keys": ("api.cli.keys:keys", "Say who may use the HTTP API."),
    "worker": ("api.cli.worker:worker", "Run queued jobs."),
    "submit": ("api.cli.submit:submit", "Queue a run as a job."),
    "jobs": ("api.cli.jobs:jobs", "List, show, cancel, wait for, resume and retry jobs."),
    "demonstrations": (
        "api.cli.demonstrations:demonstrations",
        "Build demonstrations for DRAG and IterDRAG.",
    ),
    "allocate": (
        "api.cli.allocate:allocate",
        "Choose k, m and n for a budget of input tokens.",
    ),
    "eval": ("api.cli.eval:eval_", "Compare workflows over a set of questions."),
    "bench": ("api.cli.bench:bench", "Measure speed against named peers."),
    "schema": ("api.cli.workflows:schema", "Print the JSON Schema of the workflow format."),
}
"""Name -> (module:attribute, one-line help); help stands here so that --help imports nothing."""


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list from the table, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ragwright")
def cli() -> None:
    """Agentic RAG and reasoning workflows over your own documents, on your own machine."""


def main() -> None:
    """Run the command line; errors become one line on standard error and an exit status.

    Exit status: 0 completed, 1 the run failed, 2 bad input.
    """
    try:
        sys.exit(cli(prog_name="ragwright", standalone_mode=False))
    except click.Abort:
        click.echo("ragwright: stopped", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        place = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        remedy = f"; see `{place} --help`" if place else ""
        problem = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"ragwright: {problem}{remedy}", err=True)
        sys.exit(2)
    except Exception as error:
        from api.errors import exit_status

        status = exit_status(error)
        if status is None:
            raise
        click.echo(f"ragwright: {error}", err=True)
        sys.exit(status)
