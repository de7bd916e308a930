"""Runs from an order to a result: prepared, performed wherever, kept on this host."""

from __future__ import annotations

import importlib.metadata
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphs import manifest as graph_manifest
from graphs.cache import graph_for
from inference import Budget
from inference.models.manifest import sha256
from retrieval.build import Progress
from retrieval.cache import index_for_docs
from retrieval.manifest import read_manifest
from workflows.answers import read_answers
from workflows.checkpoints import JournalFirst, sqlite_saver
from workflows.errors import WorkflowInputError
from workflows.events import Sink
from workflows.keeping import Keeping
from workflows.loading import Workflow, load_from, load_workflow, parse_input
from workflows.resources import Overrides, ResourcePool, Resources, retrieves, uses_graph
from workflows.runtime import RunOptions, RunResult, RunStatus, execute
from workflows.scope import budget_of
from workflows.shelves import SHIPPED, Bundle, shipped_workflows
from workflows.store import RunFolder, RunManifest, require_run_id

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
    tenant: str = ""


def prepare(order: RunOrder, progress: Progress | None = None) -> RunManifest:
    """Check everything of an order that can be checked, and say what the run is made of.

    `progress` hears how far the indexing of `order.docs` is. Raises WorkflowInputError and its
    kin; nothing was begun then.
    """
    workflow = load_workflow(order.workflow)
    inputs = workflow.check_inputs({**order.inputs, **_read(workflow, order.texts)})
    _budget(workflow, inputs, order.budget)
    graph = _graph(workflow, order)
    index = _index(workflow, order, progress)
    overrides = Overrides(order.engine, order.model)
    Resources(workflow.spec, ResourcePool(), index=index, graph=graph, overrides=overrides)
    return RunManifest(
        run_id=require_run_id(order.run_id or secrets.token_hex(6)),
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
        graph=None if graph is None else str(graph.resolve()),
        graph_sha256=None if graph is None else graph_manifest.fingerprint(graph),
        budget=order.budget,
        versions={name: _version(name) for name in VERSIONED},
        files=workflow.texts(),
        tenant=order.tenant,
    )


def workflow_of(manifest: RunManifest) -> Workflow:
    """The workflow as it was submitted, whatever its file holds by now."""
    named = manifest.workflow_file
    key = SHIPPED + named if SHIPPED + named in manifest.files else Path(named).name
    return load_from(Bundle(manifest.files), key)


async def perform(
    manifest: RunManifest,
    pool: ResourcePool,
    keeping: Keeping,
    *,
    sinks: Sequence[Sink] = (),
    stream_text: bool = False,
    tenant: str | None = None,
) -> RunResult:
    """One attempt at a run: begins it, or goes on at the last step that `keeping` holds.

    `tenant` is whose caches it uses, by default the manifest's. Raises WorkflowInputError where
    workflow, index, engine or answers cannot be used, Fenced where another attempt took over,
    and NotKept where it could not be written down.
    """
    workflow = workflow_of(manifest)
    inputs = workflow.check_inputs(manifest.inputs)
    resources = await _resources(workflow, manifest, pool)
    options = RunOptions(
        manifest.run_id,
        seed=manifest.seed,
        budget=_budget(workflow, inputs, manifest.budget),
        sinks=(keeping.journal, *sinks),
        stream_text=stream_text,
        past=keeping.past,
        tenant=manifest.tenant if tenant is None else tenant,
        journalled=True,
        answers=keeping.answers,
    )
    async with keeping.saver() as saver:
        kept = JournalFirst(saver, keeping.journal)
        result = await execute(workflow, inputs, resources, options, kept)
    await keeping.journal.flush()
    return result


async def start_run(
    order: RunOrder,
    sinks: Sequence[Sink] = (),
    stream_text: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Check an order, then run it in a folder of its own; a bad order leaves no run behind.

    `progress` hears how far the indexing of `order.docs` is.
    """
    manifest = prepare(order, progress)
    pool = ResourcePool()
    try:
        await _resources(workflow_of(manifest), manifest, pool)
        folder = RunFolder.create(manifest)
        return await _perform_here(folder, manifest, pool, sinks, stream_text)
    finally:
        pool.close()


async def resume_run(
    run_id: str,
    budget: Mapping[str, float] | None = None,
    sinks: Sequence[Sink] = (),
    stream_text: bool = False,
    answers: Sequence[str] = (),
) -> RunResult:
    """Go on with a run at its last finished step; a completed run gives its result again.

    `answers` are texts `[ID=]ANSWER` for what the run waits for. Raises BadAnswer, and
    WorkflowInputError if the workflow or the index is no longer what it was.
    """
    folder = RunFolder.existing(run_id)
    done = folder.result() or {}
    given = read_answers(done.get("asks", ()), answers)
    if done.get("status") == RunStatus.COMPLETED:
        return RunResult(**{**done, "status": RunStatus.COMPLETED})
    manifest = folder.manifest()
    if load_workflow(manifest.workflow_file).texts() != manifest.files:
        raise WorkflowInputError(
            f"workflow {manifest.workflow_file} changed since run {run_id} began; "
            "restore it or start another run"
        )
    manifest = replace(manifest, budget={**(manifest.budget or {}), **(budget or {})})
    pool = ResourcePool()
    try:
        return await _perform_here(folder, manifest, pool, sinks, stream_text, given, resumed=True)
    finally:
        pool.close()


async def _perform_here(
    folder: RunFolder,
    manifest: RunManifest,
    pool: ResourcePool,
    sinks: Sequence[Sink],
    stream_text: bool,
    answers: Mapping[str, Any] | None = None,
    *,
    resumed: bool = False,
) -> RunResult:
    """One attempt, kept in the run's folder."""
    with folder.working() as journal:
        past = folder.past() if resumed else None
        keeping = Keeping(journal, lambda: sqlite_saver(folder.checkpoints), past, answers or {})
        result = await perform(manifest, pool, keeping, sinks=sinks, stream_text=stream_text)
        folder.finish(result.to_dict())
        return result


async def _resources(workflow: Workflow, manifest: RunManifest, pool: ResourcePool) -> Resources:
    """Engines and retrievers of a run, opened; index and graph must still be what they were."""
    index = None if manifest.index is None else Path(manifest.index)
    if index is not None and _fingerprint(index) != manifest.index_sha256:
        raise WorkflowInputError(
            f"index {index} changed since run {manifest.run_id} began; rebuild it as it was or "
            "start another run"
        )
    graph = None if manifest.graph is None else Path(manifest.graph)
    if graph is not None and graph_manifest.fingerprint(graph) != manifest.graph_sha256:
        raise WorkflowInputError(
            f"graph {graph} changed since run {manifest.run_id} began; build it as it was or "
            "start another run"
        )
    overrides = Overrides(manifest.engine, manifest.model)
    resources = Resources(workflow.spec, pool, index=index, graph=graph, overrides=overrides)
    await resources.open()
    return resources


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


def _graph(workflow: Workflow, order: RunOrder) -> Path | None:
    if not uses_graph(workflow):
        if order.graph is not None:
            raise WorkflowInputError(
                f"workflow {workflow.spec.name!r} uses no graph; leave --graph {order.graph} out"
            )
        return None
    if order.graph is None:
        raise WorkflowInputError(
            f"workflow {workflow.spec.name!r} searches a graph; give --graph PATH"
        )
    return graph_for(order.graph)


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
