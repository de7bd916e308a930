"""`api -> workflows -> agents -> graphs -> retrieval -> inference`, and torch in two places."""

from __future__ import annotations

import ast
import fnmatch
from pathlib import Path

import pytest

from tests.house.source import PACKAGES, ROOT, Source, sources

TORCH_ALLOWED = ("inference/*", "retrieval/embed*.py")
NOT_IN_INFERENCE = {"langgraph", "faiss", "fastapi", "bm25s"}
DYNAMIC_ALLOWED = {"api/__init__.py", "api/cli/__init__.py"}
"""Files that may import a computed name; the names stand in a table of the same file."""


def violations(source: Source) -> list[str]:
    """The imports of one file that the house does not allow, each with its place."""
    found = []
    mine = PACKAGES.index(source.package)
    for item in source.imports():
        if item.module is None:
            if source.place not in DYNAMIC_ALLOWED:
                found.append(f"{source.place}:{item.line}: imports a computed name")
            continue
        root = item.module.split(".")[0]
        if root in PACKAGES and PACKAGES.index(root) < mine:
            found.append(f"{source.place}:{item.line}: {source.package} imports {item.module}")
        if root in {"data", "tests", "ragwright"}:
            found.append(f"{source.place}:{item.line}: nothing imports {root}")
        if root == "torch" and not any(fnmatch.fnmatch(source.place, p) for p in TORCH_ALLOWED):
            found.append(f"{source.place}:{item.line}: torch belongs in {TORCH_ALLOWED}")
        if source.package == "inference" and root in NOT_IN_INFERENCE:
            found.append(f"{source.place}:{item.line}: inference works without {root}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_to_the_right(package: str) -> None:
    files = sources(package)
    assert files, f"package {package} has no Python file"
    assert [line for source in files for line in violations(source)] == []


def test_every_package_says_what_it_is_for() -> None:
    silent = [s.place for s in sources() if s.text.strip() and not ast.get_docstring(s.tree)]
    assert silent == []


def test_no_other_top_level_code() -> None:
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert tops == {*PACKAGES, "tests"}
    assert {path.name for path in ROOT.glob("*.py")} == {"ragwright.py"}


@pytest.mark.parametrize(
    ("place", "code", "forbidden"),
    [
        ("retrieval/x.py", "import workflows", True),
        ("retrieval/x.py", "from agents import tools", True),
        ("retrieval/x.py", "def f():\n    from workflows.schema import Name", True),
        ("retrieval/x.py", "import importlib\nimportlib.import_module('graphs.store')", True),
        ("retrieval/x.py", "from importlib import import_module\nimport_module('api')", True),
        ("retrieval/x.py", "__import__('agents')", True),
        ("retrieval/x.py", "importlib.import_module(name)", True),
        ("retrieval/x.py", "TABLE = {'a': 'workflows.run:start'}", True),
        ("retrieval/x.py", "if True:\n    import data.corpus", True),
        ("retrieval/x.py", "import torch", True),
        ("agents/tools/x.py", "from torch import nn", True),
        ("inference/x.py", "import faiss", True),
        ("workflows/nodes/x.py", "from ...api import cli", True),
        ("workflows/nodes/__init__.py", "from ...api import cli", True),
        ("retrieval/x.py", "import inference.engine", False),
        ("retrieval/x.py", "from . import errors", False),
        ("retrieval/embedder.py", "import torch", False),
        ("inference/native/x.py", "import torch", False),
        ("workflows/nodes/x.py", "from ..errors import Fault\nfrom .base import Node", False),
        ("workflows/x.py", "NOTE = 'see api: it calls this'", False),
        ("api/x.py", "TABLE = {'a': 'workflows.run:start'}", False),
    ],
)
def test_the_walker_sees_every_way_to_import(place: str, code: str, forbidden: bool) -> None:
    path = ROOT / place
    parts = Path(place).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    found = violations(Source(path, name, code))
    assert bool(found) == forbidden, found
