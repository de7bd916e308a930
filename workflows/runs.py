"""Start and resume runs on this host: folder, lock, journal, checkpoints, resources."""

from __future__ import annotations

import importlib.metadata
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference import Budget
from inference.models.manifest import sha256
from retrieval.build import Progress
from retrieval.cache import index_for_docs
from retrieval.manifest import read_manifest
from workflows.checkpoints import sqlite_saver
from workflows.errors import WorkflowInputError
from workflows.events import Sink
from workflows.loading import Workflow, load_workflow, parse_input, shipped_workflows
from workflows.resources import Overrides, ResourcePool, Resources, retrieves
from workflows.runtime import RunOptions, RunResult, RunStatus, execute
from workflows.scope import budget_of
from workflows.store import RunFolder, RunManifest

VERSIONED = ("ragwright", "torch", "transformers", "langgraph", "faiss-cpu", "bm25s")


@dataclass(frozen=True)
class RunOrder:
    """What a caller asks for; `texts` are inputs still to be read as their declared type."""

    workflow: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    docs: Path | None = None
    index: Path | None = None
    graph: Path | None = None
    engine: str | None = None
    model: str | None = None
    seed: int = 0
    budget: Mapping[str, float] | None = None
    run_id: str | None = None


async def start_run(
    order: RunOrder,
    sinks: Sequence[Sink] = (),
    stream_text: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Check an order, then run it with checkpoints; no run is begun if the order is bad.

    `progress` hears how far the indexing of `order.docs` is.
    """
    workflow = load_workflow(order.workflow)
    inputs = workflow.check_inputs({**order.inputs, **_read(workflow, order.texts)})
    if order.graph is not None:
        raise WorkflowInputError(
            f"workflow {workflow.spec.name!r} uses no graph; leave --graph {order.graph} out"
        )
    overrides = Overrides(order.engine, order.model)
    index = _index(workflow, order, progress)
    pool = ResourcePool()
    resources = Resources(workflow.spec, pool, index=index, overrides=overrides)
    manifest = RunManifest(
        run_id=order.run_id or secrets.token_hex(6),
        workflow=workflow.spec.name,
        workflow_file=_lasting(order.workflow),
        workflow_sha256=workflow.sha256,
        workflow_text=workflow.text,
        inputs=inputs,
        seed=order.seed,
        engine=order.engine,
        model=order.model,
        index=None if index is None else str(index.resolve()),
        index_sha256=None if index is None else _fingerprint(index),
        budget=order.budget,
        versions={name: _version(name) for name in VERSIONED},
    )
    options = RunOptions(
        manifest.run_id,
        seed=order.seed,
        budget=_budget(workflow, inputs, order.budget),
        sinks=sinks,
        stream_text=stream_text,
    )
    try:
        await resources.open()
        return await _work(RunFolder.create(manifest), workflow, inputs, resources, options)
    finally:
        pool.close()


async def resume_run(
    run_id: str,
    budget: Mapping[str, float] | None = None,
    sinks: Sequence[Sink] = (),
    stream_text: bool = False,
) -> RunResult:
    """Go on with a run at its last finished step; a completed run gives its result again.

    Raises WorkflowInputError if the workflow or the index is no longer what it was.
    """
    folder = RunFolder.existing(run_id)
    done = folder.result()
    if done is not None and done["status"] == RunStatus.COMPLETED:
        return RunResult(**{**done, "status": RunStatus.COMPLETED})
    manifest = folder.manifest()
    workflow = load_workflow(manifest.workflow_file)
    if workflow.sha256 != manifest.workflow_sha256:
        raise WorkflowInputError(
            f"workflow {manifest.workflow_file} changed since run {run_id} began; "
            "restore it or start another run"
        )
    index = None if manifest.index is None else Path(manifest.index)
    if index is not None and _fingerprint(index) != manifest.index_sha256:
        raise WorkflowInputError(
            f"index {index} changed since run {run_id} began; rebuild it as it was or start "
            "another run"
        )
    overrides = Overrides(manifest.engine, manifest.model)
    pool = ResourcePool()
    resources = Resources(workflow.spec, pool, index=index, overrides=overrides)
    inputs = workflow.check_inputs(manifest.inputs)
    options = RunOptions(
        run_id,
        seed=manifest.seed,
        budget=_budget(workflow, inputs, {**(manifest.budget or {}), **(budget or {})}),
        sinks=sinks,
        stream_text=stream_text,
        past=folder.past(),
    )
    try:
        await resources.open()
        return await _work(folder, workflow, inputs, resources, options)
    finally:
        pool.close()


async def _work(
    folder: RunFolder,
    workflow: Workflow,
    inputs: Mapping[str, Any],
    resources: Resources,
    options: RunOptions,
) -> RunResult:
    with folder.working() as journal:
        options.sinks = (journal, *options.sinks)
        async with sqlite_saver(folder.checkpoints) as saver:
            result = await execute(workflow, inputs, resources, options, saver)
        folder.finish(result.to_dict())
        return result


def _budget(
    workflow: Workflow, inputs: Mapping[str, Any], given: Mapping[str, float] | None
) -> Budget:
    """The file's budget, with the caller's limits in place of the file's where given."""
    return replace(budget_of(workflow, inputs), **(given or {}))  # type: ignore[arg-type]


def _index(workflow: Workflow, order: RunOrder, progress: Progress | None) -> Path | None:
    if not retrieves(workflow):
        given = order.docs or order.index
        if given is not None:
            raise WorkflowInputError(
                f"workflow {workflow.spec.name!r} searches no documents; leave {given} out"
            )
        return None
    if order.docs is not None:
        return index_for_docs(order.docs, progress)
    if order.index is None:
        raise WorkflowInputError(
            f"workflow {workflow.spec.name!r} searches documents; give --docs PATH or --index DIR"
        )
    return order.index


def _read(workflow: Workflow, texts: Mapping[str, str]) -> dict[str, Any]:
    """Texts as values of the declared types; an unknown name stays for `check_inputs` to refuse."""
    specs, values = workflow.spec.inputs, dict[str, Any](texts)
    for name in specs.keys() & texts.keys():
        try:
            values[name] = parse_input(specs[name], texts[name])
        except WorkflowInputError as error:
            raise WorkflowInputError(f"input {name!r}: {error}") from None
    return values


def _lasting(workflow: str) -> str:
    """A shipped name, or a path that holds from any folder a resume may be started in."""
    return workflow if workflow in shipped_workflows() else str(Path(workflow).resolve())


def _fingerprint(index: Path) -> str:
    """Hash of the index manifest, which itself holds the hash of every file of the index.

    Raises BadIndex where there is none.
    """
    read_manifest(index)
    return sha256(index / "manifest.json")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
