"""Every row of a contract (engine, policy, retriever, node) stands in its table, and no other."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from tests.house.source import PACKAGES


@dataclass(frozen=True)
class Contract:
    """A base class, the method that makes a subclass concrete, and where its table stands."""

    package: str
    base: str
    method: str
    table: str

    def load(self) -> type[BaseModel]:
        """The base class."""
        base: type[BaseModel] = _load(self.base)
        return base

    def rows(self) -> Mapping[str, type[BaseModel]]:
        """The table."""
        table: Mapping[str, type[BaseModel]] = _load(self.table)
        return table


CONTRACTS = [
    Contract("inference", "inference.engine:EngineConfig", "open", "inference.engine:ENGINES"),
    Contract("inference", "inference.kv:KVPolicy", "compress", "inference.kv:KV_POLICIES"),
    Contract(
        "inference", "inference.speculative:Drafter", "open", "inference.speculative:DRAFTERS"
    ),
    Contract(
        "retrieval", "retrieval.retriever:RetrieverConfig", "open", "retrieval.table:RETRIEVERS"
    ),
    Contract(
        "graphs", "retrieval.retriever:RetrieverConfig", "open", "graphs.table:GRAPH_RETRIEVERS"
    ),
    Contract("agents", "agents.watching:Trigger", "watching", "agents.triggers:TRIGGERS"),
    Contract("workflows", "workflows.nodes.base:Node", "run", "workflows.nodes:NODES"),
]

each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.table)


def missing(contract: Contract) -> set[type]:
    """Concrete subclasses in the contract's package that the table lacks.

    One in a package that has no table for the contract counts as missing too.
    """
    import_all(contract.package)
    elsewhere = {c.package for c in CONTRACTS if c.base == contract.base} - {contract.package}
    packages = set(PACKAGES) - elsewhere
    found = {c for c in concrete(contract) if c.__module__.split(".")[0] in packages}
    return found - set(contract.rows().values())


def import_all(package: str) -> None:
    """Import every module of a package."""
    top = importlib.import_module(package)
    for module in pkgutil.walk_packages(top.__path__, f"{package}."):
        importlib.import_module(module.name)


def concrete(contract: Contract) -> Iterator[type]:
    """Subclasses at any depth that have their own version of the contract's method."""
    base = contract.load()
    queue = base.__subclasses__()
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if getattr(cls, contract.method) is not getattr(base, contract.method):
            yield cls


@each_contract
def test_every_concrete_subclass_is_in_the_table(contract: Contract) -> None:
    assert missing(contract) == set()


@each_contract
def test_rows_are_concrete_and_of_their_own_package(contract: Contract) -> None:
    rows = contract.rows()
    assert rows, f"{contract.table} is empty"
    usable = set(concrete(contract))
    assert {n for n, c in rows.items() if c.__module__.split(".")[0] != contract.package} == set()
    assert {name for name, cls in rows.items() if cls not in usable} == set()
    assert len(set(rows.values())) == len(rows), "one class under two names"


@each_contract
def test_rows_say_what_they_are(contract: Contract) -> None:
    for name, cls in contract.rows().items():
        first = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("\n\n")[0]
        assert first.endswith((".", ":")), f"{name}: {cls.__name__} has no docstring of a sentence"


@each_contract
def test_options_are_strict_and_frozen(contract: Contract) -> None:
    for name, cls in contract.rows().items():
        assert cls.model_config.get("extra") == "forbid", name
        assert cls.model_config.get("frozen"), name


@each_contract
def test_a_forgotten_row_is_noticed(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    table = dict(contract.rows())
    forgotten = table.pop(next(iter(table)))
    monkeypatch.setattr(Contract, "rows", lambda self: table)
    assert missing(contract) == {forgotten}


def _load(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
