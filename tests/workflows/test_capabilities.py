"""A workflow that asks an open engine for what it lacks is refused before the run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.inference.tiny import checkpoint
from workflows.errors import WorkflowInputError
from workflows.loading import load_workflow
from workflows.resources import Overrides, ResourcePool, Resources


def test_the_node_the_capability_and_the_engines_are_named(tmp_path: Path) -> None:
    model = str(checkpoint(tmp_path, template=None))
    pool = ResourcePool()
    resources = Resources(load_workflow("closed_book").spec, pool, overrides=Overrides(model=model))
    try:
        with pytest.raises(WorkflowInputError) as caught:
            asyncio.run(resources.open())
    finally:
        pool.close()
    for part in ("'answer'", "'chat'", "native, openai, vllm", model):
        assert part in str(caught.value)
