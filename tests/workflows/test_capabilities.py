"""A workflow that asks an open engine for what it lacks is refused before the run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.inference.misbehaving import misbehaving
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


FILE = """\
name: w
resources:
  engine: {use: openai, base_url: "URL", model: small, context_length: 64}
nodes:
  ask: {use: generate, with: {prompt: the fox}, grammar: {regex: a}}
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {answer: "${state.text}"}
"""


def test_a_server_that_keeps_to_no_grammar_is_refused_for_the_node_that_has_one(
    tmp_path: Path,
) -> None:
    with misbehaving() as server:
        file = tmp_path / "w.yaml"
        file.write_text(FILE.replace("URL", server.url), encoding="utf-8")
        pool = ResourcePool()
        try:
            with pytest.raises(WorkflowInputError, match=r"'ask'.*'grammar'.*native, openai, vllm"):
                asyncio.run(Resources(load_workflow(str(file)).spec, pool).open())
        finally:
            pool.close()
