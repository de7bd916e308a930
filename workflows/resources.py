"""Engines and retrievers of a workflow: configured from the file, opened once, shared."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graphs.table import GRAPH_RETRIEVERS
from inference import Engine, EngineConfig
from inference.engine import ENGINES
from inference.suggest import nearest
from retrieval import Retriever, RetrieverConfig
from retrieval.table import RETRIEVERS
from workflows.errors import WorkflowInputError
from workflows.loading import Workflow
from workflows.nodes import NODES
from workflows.schema import ResourceSpec, WorkflowSpec


class ResourcePool:
    """Opens every engine and retriever at most once per process and closes them together.

    Resources with equal options are the same object, so that two workflows, or a workflow and
    its sub-workflows, share one loaded model and its prefix cache.
    """

    def __init__(self) -> None:
        self._opened: dict[tuple[Any, ...], Any] = {}
        self._locks: dict[tuple[Any, ...], asyncio.Lock] = {}

    async def engine(self, config: EngineConfig) -> Engine:
        """The engine of this configuration, loaded on first use."""
        engine: Engine = await self._once((type(config), config), config.open)
        return engine

    async def retriever(self, config: RetrieverConfig, index: Path) -> Retriever:
        """The retriever of this configuration over an index or graph, opened on first use."""
        key = (type(config), config, index)
        retriever: Retriever = await self._once(key, lambda: config.open(index))
        return retriever

    def adopt(self, config: EngineConfig, engine: Engine) -> None:
        """Use an engine that is already open for this configuration."""
        self._opened[(type(config), config)] = engine

    async def _once(self, key: tuple[Any, ...], opener: Any) -> Any:
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._opened:
                self._opened[key] = await asyncio.to_thread(opener)
        return self._opened[key]

    def close(self) -> None:
        """Close every engine that was opened."""
        for resource in self._opened.values():
            if isinstance(resource, Engine):
                resource.close()
        self._opened.clear()


@dataclass(frozen=True)
class Overrides:
    """What the caller puts in place of the file's choices."""

    engine: str | None = None
    model: str | None = None


class Resources:
    """The resources of one workflow, by the names its nodes use."""

    def __init__(
        self,
        spec: WorkflowSpec,
        pool: ResourcePool,
        *,
        index: Path | None = None,
        graph: Path | None = None,
        overrides: Overrides | None = None,
    ) -> None:
        self.spec = spec
        self.pool = pool
        self.index, self.graph = index, graph
        self.overrides = overrides or Overrides()
        self.engines: dict[str, EngineConfig] = {}
        self.retrievers: dict[str, RetrieverConfig] = {}
        for name, resource in spec.resources.items():
            row = RETRIEVERS.get(resource.use) or GRAPH_RETRIEVERS.get(resource.use)
            if row is not None:
                self.retrievers[name] = _configure(row, name, resource.options)
                self._folder(name)
            else:
                self.engines[name] = self._engine_config(name, resource)

    def _folder(self, name: str) -> Path:
        """The index or graph that a retriever searches; raises WorkflowInputError without one."""
        walks = self.spec.resources[name].use in GRAPH_RETRIEVERS
        folder = self.graph if walks else self.index
        if folder is None:
            what, remedy = ("documents", "--docs PATH or --index DIR")
            if walks:
                what, remedy = ("a graph", "--graph PATH")
            raise WorkflowInputError(
                f"workflow {self.spec.name!r} searches {what} (resource {name!r}); give {remedy}"
            )
        return folder

    def _engine_config(self, name: str, resource: ResourceSpec) -> EngineConfig:
        use = self.overrides.engine or resource.use
        if use not in ENGINES:
            raise WorkflowInputError(f"unknown engine {use!r}; {nearest(use, ENGINES)}")
        options = resource.options if use == resource.use else {}
        if self.overrides.model is not None:
            options = {**options, "model": self.overrides.model}
        config: EngineConfig = _configure(ENGINES[use], name, options)
        return config

    async def engine(self, name: str) -> Engine:
        """The engine resource of this name."""
        return await self.pool.engine(self.engines[name])

    async def retriever(self, name: str) -> Retriever:
        """The retriever resource of this name."""
        return await self.pool.retriever(self.retrievers[name], self._folder(name))

    async def open(self) -> None:
        """Open everything now, so that a bad model or index is refused before a run begins.

        An engine may turn out to have less than its row of the table promises (a model without a
        chat template, a server that cannot score); nodes that need more are refused here.
        """
        for name in self.retrievers:
            await self.retriever(name)
        for name in self.engines:
            self._require(name, await self.engine(name))

    def _require(self, name: str, engine: Engine) -> None:
        for node_name, node in self.spec.nodes.items():
            row = NODES.get(node.use)
            if row is None or not row.generates or node.engine != name:
                continue
            for capability in sorted((row.needs | node.needs.keys()) - engine.capabilities):
                able = [use for use, config in ENGINES.items() if capability in config.provides]
                raise WorkflowInputError(
                    f"node {node_name!r} ({node.use}) needs the capability {capability.value!r}, "
                    f"which the engine {name!r} lacks with model {engine.model!r}; engines that "
                    f"can have it: {', '.join(able) or 'none'}"
                )

    def for_child(self, spec: WorkflowSpec) -> Resources:
        """The resources of a sub-workflow, over the same pool, index, graph and overrides."""
        return Resources(
            spec, self.pool, index=self.index, graph=self.graph, overrides=self.overrides
        )


def retrieves(workflow: Workflow) -> bool:
    """True if the workflow, or one it calls, declares a retriever over documents."""
    return _declares(workflow, RETRIEVERS)


def uses_graph(workflow: Workflow) -> bool:
    """True if the workflow, or one it calls, declares a retriever over a graph."""
    return _declares(workflow, GRAPH_RETRIEVERS)


def _declares(workflow: Workflow, table: Mapping[str, Any]) -> bool:
    own = any(resource.use in table for resource in workflow.spec.resources.values())
    return own or any(_declares(child, table) for child in workflow.children.values())


def _configure(config: type[Any], name: str, options: Mapping[str, Any]) -> Any:
    try:
        return config.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WorkflowInputError(
            f"resource {name!r}: option {where!r}: {first['msg']} (got {first.get('input')!r})"
        ) from None
