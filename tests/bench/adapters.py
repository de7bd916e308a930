"""Scores of a trained adapter: a shipped workflow over the dev split of the synthetic questions.

    python -m tests.bench.adapters auto_rag --adapters FOLDER --limit 20 [--write]

FOLDER holds `auto-rag-default` and `reader-default` as `inference/weights/` does. Every question is
asked with and without the adapter, and `--write` puts the scores into the adapter's card. Scores
stand in no figure of the bench; this page of numbers is for the card.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from api.evaluation.scores import exact_match, supporting_recall
from inference.adapters import shipped
from inference.engine import NativeConfig
from inference.training.hops import write_hops
from retrieval.index import build_index
from workflows.loading import load_workflow
from workflows.resources import Overrides, ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, execute

NAMES = {"auto_rag": "auto-rag-default", "naive_rag": "reader-default"}
SEED = 0


def chosen(rows: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """`limit` questions, lengths in turn, spread over each length's questions."""
    lengths: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        lengths.setdefault(row["hops"], []).append(row)
    each = -(-limit // len(lengths))
    picked = [row for of in lengths.values() for row in of[:: max(1, len(of) // each)][:each]]
    return picked[:limit]


async def answers(
    name: str, rows: Sequence[dict[str, Any]], index: Path, model: str, trained: bool
) -> list[RunResult]:
    """The runs of a workflow over some questions, one after the other, in one engine."""
    workflow = load_workflow(name)
    pool = ResourcePool()
    config = NativeConfig(model=model)
    resources = Resources(workflow.spec, pool, index=index, overrides=Overrides(engine=config))
    await resources.open()
    done = []
    for number, row in enumerate(rows):
        inputs = workflow.check_inputs({"question": row["question"], "trained": trained})
        result = await execute(workflow, inputs, resources, RunOptions(f"score-{number}"))
        done.append(result)
        print(json.dumps([row["id"], row["answer"], result.outputs.get("answer")]), flush=True)
    pool.close()
    return done


def scores(rows: Sequence[dict[str, Any]], results: Sequence[RunResult]) -> dict[str, Any]:
    """Exact match and, of dialogues, how they went, per number of hops."""
    found: dict[str, Any] = {"n": len(rows), "failed": sum(r.error is not None for r in results)}
    for hops in sorted({row["hops"] for row in rows}):
        pairs = [(row, r) for row, r in zip(rows, results, strict=True) if row["hops"] == hops]
        outputs = [(row, result.outputs) for row, result in pairs if result.outputs]
        read = [
            supporting_recall([f"{one}.txt" for one in row["supporting"]], out.get("citations", ()))
            for row, out in outputs
        ]
        right = [
            exact_match(str(out.get("answer") or ""), (row["answer"], *row["aliases"]))
            for row, out in outputs
        ]
        of: dict[str, Any] = {
            "n": len(pairs),
            "exact_match": int(sum(right)),
            "supporting_read": round(fmean(read), 3) if read else None,
        }
        if outputs and "rounds" in outputs[0][1]:
            of |= {
                "rounds": round(fmean(out["rounds"] for _, out in outputs), 2),
                "malformed_turns": sum(out["malformed_turns"] for _, out in outputs),
                "endings": dict(Counter(out["ending"] for _, out in outputs)),
            }
        found[f"{hops} hops"] = of
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Score a workflow with its adapter and without."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.adapters")
    parser.add_argument("workflow", choices=sorted(NAMES))
    parser.add_argument("--adapters", type=Path, default=shipped.SHIPPED)
    parser.add_argument("--model", default="default")
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--only", choices=["trained", "untrained"])
    parser.add_argument("--write", action="store_true", help="put the scores into the card")
    given = parser.parse_args(arguments)
    shipped.SHIPPED = given.adapters.resolve()
    with TemporaryDirectory() as home:
        folder = Path(home)
        write_hops(folder, seed=SEED, split="dev")
        build_index(folder / "docs", folder / "index")
        text = (folder / "questions.jsonl").read_text(encoding="utf-8")
        rows = chosen([json.loads(line) for line in text.splitlines()], given.limit)
        measured: dict[str, Any] = {"questions": f"synthetic-hops dev, seed {SEED}"}
        for kind in ("trained", "untrained"):
            if given.only in (None, kind):
                runs = answers(
                    given.workflow, rows, folder / "index", given.model, kind == "trained"
                )
                measured[kind] = scores(rows, asyncio.run(runs))
    print(json.dumps(measured, indent=1))
    if given.write:
        path = shipped.SHIPPED / NAMES[given.workflow] / "card.json"
        card = json.loads(path.read_text(encoding="utf-8"))
        card["scores"] = measured
        path.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
