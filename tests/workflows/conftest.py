"""Running a workflow text in a test: load, execute, look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.replay import ReplayConfig, ReplayEngine
from workflows.events import Event
from workflows.loading import load_workflow
from workflows.resources import ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, execute

Run = Callable[..., RunResult]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Execute a workflow text (or a shipped name) without checkpoints.

    Give `engine` (a ReplayEngine) for generating nodes and `index` for retrieving ones.
    """

    def _run(
        source: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        engine: ReplayEngine | None = None,
        index: Path | None = None,
        sinks: Sequence[Callable[[Event], None]] = (),
        **options: Any,
    ) -> RunResult:
        if "\n" in source:
            file = tmp_path / "workflow.yaml"
            file.write_text(source, encoding="utf-8")
            source = str(file)
        workflow = load_workflow(source)
        resources = Resources(workflow.spec, ResourcePool(), index=index)
        adopt(resources, engine)
        return asyncio.run(
            execute(
                workflow,
                workflow.check_inputs(inputs or {}),
                resources,
                RunOptions("test", sinks=sinks, **options),
            )
        )

    return _run


def adopt(resources: Resources, engine: ReplayEngine | None) -> None:
    """Let every engine resource be the given engine."""
    if engine is None:
        return
    config = ReplayConfig()
    resources.engines = dict.fromkeys(resources.engines, config)
    resources.pool.adopt(config, engine)
