"""Scores of a trained adapter, for its card: what `ragwright eval` measures with it and without.

    python -m tests.bench.adapters auto_rag --adapters FOLDER --limit 30 [--write]

FOLDER holds `auto-rag-default` and `reader-default` as `inference/weights/` does. The questions are
the synthetic ones of the dev split, which neither training nor the published evaluation uses.
`--write` puts the scores into the adapter's card.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from api.evaluation.manifest import manifest_of
from api.evaluation.plan import Order, make_plan
from api.evaluation.results import Results
from api.evaluation.running import evaluate
from api.evaluation.summary import summarise
from inference.adapters import shipped

NAMES = {"auto_rag": "auto-rag-default", "naive_rag": "reader-default"}
SUITE = "synthetic-hops:split=dev"
BY_HOPS = ("exact_match", "supporting_recall", "rounds")
COUNTS = ("failed", "malformed_turns", "forced", "endings")


def scores(workflow: str, limit: int, at_once: int = 8, model: str | None = None) -> dict[str, Any]:
    """What the workflow reaches with its adapter and without, by number of hops."""
    untrained = f"{workflow}:trained=false"
    order = Order(SUITE, (workflow, untrained), model=model, limit=limit, at_once=at_once)
    plan = make_plan(order)
    with (
        TemporaryDirectory() as folder,
        Results.working(Path(folder) / "out", manifest_of(plan), resume=False) as results,
    ):
        asyncio.run(evaluate(plan, results))
        found = summarise(plan, results.rows, folder)
    labels = zip(("trained", "untrained"), plan.contenders, strict=True)
    return {
        "suite": SUITE,
        "n": found["n"],
        "limit": limit,
        "at_once": at_once,
        **{kind: _of(found, contender.label) for kind, contender in labels},
    }


def _of(found: dict[str, Any], label: str) -> dict[str, Any]:
    whole = found["workflows"][label]
    rows = {f"{row['hops']} hops": row for row in found["hops"] if row["workflow"] == label}
    return {
        **{name: whole[name] for name in COUNTS if whole[name] is not None},
        **{
            name: {"n": row["n"], **{key: row[key] for key in BY_HOPS if row[key] is not None}}
            for name, row in rows.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Score a workflow with its adapter and without."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.adapters")
    parser.add_argument("workflow", choices=sorted(NAMES))
    parser.add_argument("--adapters", type=Path, default=shipped.SHIPPED)
    parser.add_argument("--model", help="instead of the default model")
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="put the scores into the card")
    given = parser.parse_args(arguments)
    shipped.SHIPPED = given.adapters.resolve()
    measured = scores(given.workflow, given.limit, given.at_once, given.model)
    print(json.dumps(measured, indent=1))
    if given.write:
        path = shipped.SHIPPED / NAMES[given.workflow] / "card.json"
        card = json.loads(path.read_text(encoding="utf-8"))
        card["scores"] = measured
        path.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
