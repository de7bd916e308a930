"""`ragwright workflows` and `ragwright schema`: what a workflow file says and whether it is valid.

Nothing here imports torch, transformers, langgraph or faiss.
"""

from __future__ import annotations

import json
from typing import Any

import click


@click.group()
def workflows() -> None:
    """List, draw and validate workflows."""


@workflows.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(as_json: bool) -> None:
    """List the shipped workflows."""
    from workflows.loading import load_workflow, shipped_workflows

    rows = [
        {"name": name, "description": load_workflow(name).spec.description}
        for name in shipped_workflows()
    ]
    if as_json:
        _print_json({"workflows": rows})
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['description']}".rstrip())


@workflows.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, as_json: bool) -> None:
    """Draw a workflow (a shipped name or a file) as a mermaid flowchart."""
    from workflows.diagram import mermaid
    from workflows.loading import load_workflow

    workflow = load_workflow(name)
    chart = mermaid(workflow.spec)
    if as_json:
        spec = workflow.spec
        inputs = {key: value.model_dump(exclude_unset=True) for key, value in spec.inputs.items()}
        _print_json(
            {
                "name": spec.name,
                "description": spec.description,
                "file": workflow.file,
                "sha256": workflow.sha256,
                "inputs": inputs,
                "outputs": list(spec.outputs),
                "mermaid": chart,
            }
        )
    else:
        click.echo(chart, nl=False)


@workflows.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def validate(context: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Check workflow files; every fault with its line and column, exit status 2 if there is any."""
    reports = [_report(file) for file in files]
    if as_json:
        _print_json({"files": reports})
    else:
        for report in reports:
            _print_report(report)
    if not all(report["valid"] for report in reports):
        context.exit(2)


@click.command()
def schema() -> None:
    """Print the JSON Schema of the workflow format."""
    from workflows.jsonschema import workflow_schema

    _print_json(workflow_schema())


def _report(file: str) -> dict[str, Any]:
    """What validation says about one file."""
    from workflows.errors import Fault, InvalidWorkflow, WorkflowInputError
    from workflows.loading import load_workflow

    faults: list[Fault] = []
    try:
        load_workflow(file)
    except InvalidWorkflow as error:
        faults = error.faults
    except WorkflowInputError as error:
        faults = [Fault(1, 1, error.code, str(error))]
    return {"file": file, "valid": not faults, "faults": [fault.to_dict() for fault in faults]}


def _print_report(report: dict[str, Any]) -> None:
    if report["valid"]:
        click.echo(f"{report['file']}: valid")
    for fault in report["faults"]:
        place = f"{report['file']}:{fault['line']}:{fault['column']}"
        click.echo(f"{place}: {fault['message']} [{fault['code']}]", err=True)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))
