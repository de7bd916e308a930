"""Answers with ATLAS against answers with as many searches at fixed distances (In-Context RALM).

The project's own questions over its own corpus. Those in which ATLAS searched are asked again with
a search behind every few tokens, as many as it made; an answer is right if it holds a gold.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from api.evaluation.scores import normalise
from inference.engine import NativeConfig
from retrieval.index import build_index
from tests.bench.contest import say
from tests.bench.figures import Figure
from workflows.loading import load_workflow
from workflows.resources import Overrides, ResourcePool, Resources
from workflows.runtime import RunOptions, RunStatus, execute

DATA = Path(__file__).parents[2] / "data"
STRIDES = (8, 16)
"""Tokens between two searches of the peer."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Whether an answer holds a gold, and how often it searched."""

    right: bool
    searches: int


class Asking:
    """One engine and one index, asked with any trigger."""

    def __init__(self, index: Path, folder: Path, engine: NativeConfig) -> None:
        self._index, self._folder, self._engine = index, folder, engine
        self.pool = ResourcePool()

    async def ask(self, row: Mapping[str, Any], trigger: Mapping[str, Any]) -> Answered:
        """The shipped workflow's answer with another trigger."""
        file = self._folder / f"{'-'.join(str(one) for one in trigger.values())}.yaml"
        if not file.exists():
            safe = YAML(typ="safe", pure=True)
            text = files("workflows.library").joinpath("atlas.yaml").read_text("utf-8")
            spec = safe.load(text)
            spec["nodes"]["answer"]["trigger"] = dict(trigger)
            safe.dump(spec, file)
        workflow = load_workflow(str(file))
        over = Overrides(engine=self._engine)
        resources = Resources(workflow.spec, self.pool, index=self._index, overrides=over)
        inputs = workflow.check_inputs({"question": row["question"]})
        result = await execute(workflow, inputs, resources, RunOptions("bench"))
        if result.status is not RunStatus.COMPLETED:
            raise RuntimeError(f"question {row['id']!r} with {dict(trigger)}: {result.error}")
        said = f" {normalise(result.outputs['answer'])} "
        golds = [row["answer"], *row.get("aliases", ())]
        right = any(f" {normalise(gold)} " in said for gold in golds)
        return Answered(right, len(result.steps[0]["notes"]["trigger"]["searches"]))


def answers(n: int, engine: NativeConfig, atlas: Mapping[str, Any]) -> list[Figure]:
    """Figures over `n` questions at most; `atlas` are options of the trigger."""
    lines = (DATA / "questions.jsonl").read_text("utf-8").splitlines()[:n]
    with TemporaryDirectory() as folder:
        build_index(DATA / "corpus", Path(folder) / "index")
        asking = Asking(Path(folder) / "index", Path(folder), engine)
        try:
            return asyncio.run(_compared(asking, [json.loads(line) for line in lines], atlas))
        finally:
            asking.pool.close()


async def _compared(
    asking: Asking, rows: list[dict[str, Any]], atlas: Mapping[str, Any]
) -> list[Figure]:
    ours: list[Answered] = []
    theirs: dict[int, list[Answered]] = {stride: [] for stride in STRIDES}
    for number, row in enumerate(rows, start=1):
        own = await asking.ask(row, {"use": "atlas", **atlas})
        if own.searches:
            ours.append(own)
            for stride, those in theirs.items():
                given = {"use": "ralm", "stride": stride, "most": own.searches}
                those.append(await asking.ask(row, given))
        say(f"answers: {number} of {len(rows)} questions, ATLAS searched in {len(ours)}")
    return [figure for stride in STRIDES for figure in _figures(stride, ours, theirs[stride])]


def _figures(stride: int, ours: list[Answered], theirs: list[Answered]) -> list[Figure]:
    n, peer = len(ours), f"a search every {stride} tokens"
    if not n:
        return []
    own, other = (sum(one.right for one in those) / n for those in (ours, theirs))
    mine, made = (sum(one.searches for one in those) / n for those in (ours, theirs))
    ratio = own / other if other else None
    name = f"answers stride_{stride}"
    return [
        Figure(f"{name} right", own, "share", peer, other, ratio, n=n),
        Figure(f"{name} searches", mine, "searches/answer", peer, made, n=n),
    ]
