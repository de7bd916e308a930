"""`ragwright demonstrations`: runs of IterDRAG over training questions, as demonstrations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("questions", type=FILE)
@click.option("--docs", required=True, type=FILE, help="File or folder of documents, indexed.")
@click.option("--out", required=True, type=FILE, help="JSONL file; goes on with an old one.")
@click.option("-k", type=click.IntRange(0, 1000), default=3, show_default=True, help="Documents.")
@click.option("--iterations", type=click.IntRange(1, 5), default=5, show_default=True)
@click.option(
    "--shown",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Shipped demonstrations the runs are shown.",
)
@click.option("--want", type=click.IntRange(min=1), help="Stop at so many right ones.")
@click.option("--model", help="Known name, path or hub id, in place of the workflow's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demonstrations(
    questions: Path,
    docs: Path,
    out: Path,
    k: int,
    iterations: int,
    shown: int,
    want: int | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Run IterDRAG over training QUESTIONS and keep the runs whose final answer is right.

    QUESTIONS is JSONL with question, answer and optional aliases. A line of the output is one
    question; `kept` says whether it is a demonstration. The array of those is the input `pool` of
    `drag` and `iter_drag`. Never use questions that are tested on.
    """
    from tqdm import tqdm

    from agents.drag import is_right
    from api.agents import IterDRAG

    asked = _questions(questions)
    done = _lines(out)
    tried = {line["question"]: line for line in done}
    kept = sum(bool(line["kept"]) for line in done)
    options = {"k": k, "iterations": iterations, "demonstrations": shown}
    left = [each for each in asked if each["question"] not in tried]
    with (
        IterDRAG(docs=docs, model=model, options=options) as agent,
        out.open("a", encoding="utf-8") as file,
        tqdm(total=len(left), desc="runs", unit="question", disable=not sys.stderr.isatty()) as bar,
    ):
        for each in left:
            if want is not None and kept >= want:
                break
            result = agent.run(each["question"])
            line: dict[str, Any] = {"question": each["question"], "kept": False}
            if result.status == "completed":
                golds = [each["answer"], *each.get("aliases", [])]
                right = is_right(result.outputs["answer"], golds)
                line = {**result.outputs["demonstration"], "kept": right}
            else:
                line["error"] = result.error
            kept += line["kept"]
            tried[line["question"]] = line
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(1)
            bar.set_postfix(kept=kept)
    failed = sum("error" in line for line in tried.values())
    report = {"out": str(out), "tried": len(tried), "kept": kept, "failed": failed}
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(f"kept {kept} of {len(tried)} runs ({failed} failed) in {out}")


def _questions(path: Path) -> list[dict[str, Any]]:
    from agents.drag import DemonstrationError

    found = _lines(path, must_exist=True)
    for number, each in enumerate(found, start=1):
        aliases = each.get("aliases", [])
        fine = all(isinstance(each.get(name), str) for name in ("question", "answer"))
        if not fine or not each["question"].strip() or not isinstance(aliases, list):
            raise DemonstrationError(
                f"{path}: question {number} needs the texts question and answer, and aliases, if "
                "there are any, as a list"
            )
    return found


def _lines(path: Path, *, must_exist: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSONL file; raises DemonstrationError naming the line."""
    from agents.drag import DemonstrationError

    if not must_exist and not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DemonstrationError(f"{path} cannot be read: {error}") from None
    found = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            remedy = "" if must_exist else "; if a kill cut this line, delete it"
            raise DemonstrationError(f"{path}:{number} is no JSON ({error}){remedy}") from None
        if not isinstance(value, dict):
            raise DemonstrationError(f"{path}:{number}: a line is a JSON object")
        found.append(value)
    if not must_exist and any("question" not in each or "kept" not in each for each in found):
        raise DemonstrationError(f"{path} is no file of demonstrations; give --out another name")
    return found
