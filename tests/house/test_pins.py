"""constraints.txt pins every distribution that an install brings in, each to one version."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from importlib.util import find_spec

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.source import ROOT

PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.]+)")
FILES = (
    "constraints.txt",
    "constraints-gpu.txt",
    "constraints-vllm.txt",
    "constraints-llamacpp.txt",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(file: str = "constraints.txt") -> dict[str, str]:
    """Canonical name -> version; any line that is not an exact public version fails."""
    found: dict[str, str] = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        match = PIN.fullmatch(line)
        assert match, f"{file}: {line!r} is not NAME==VERSION without URL, path or local part"
        name = str(canonicalize_name(match["name"]))
        assert name not in found, f"{file}: {name} is pinned twice"
        assert str(Version(match["version"])), line
        found[name] = match["version"]
    return found


def declared() -> list[Requirement]:
    """Every requirement of pyproject.toml, extras included."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def needed(extras: set[str]) -> set[str]:
    """Canonical names of all that this environment has installed for the given extras."""
    seen: set[tuple[str, str]] = set()
    queue = [("ragwright", extra) for extra in ("", *extras)]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in importlib.metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                child = str(canonicalize_name(need.name))
                queue += [(child, wanted) for wanted in ("", *need.extras)]
    return {name for name, _ in seen} - {"ragwright"}


def test_every_declared_dependency_is_pinned() -> None:
    gpu = {canonicalize_name(Requirement(t).name) for t in PROJECT["optional-dependencies"]["gpu"]}
    names = {canonicalize_name(requirement.name) for requirement in declared()}
    assert names - gpu - set(pins()) == set()
    assert names - {"faiss-cpu"} - set(pins("constraints-gpu.txt")) == set()


def test_every_installed_dependency_is_pinned_at_its_version() -> None:
    extra = "gpu" if find_spec("vllm") else "cpu"
    pinned = pins({"gpu": "constraints-gpu.txt", "cpu": "constraints.txt"}[extra])
    wrong = {}
    for name in sorted(needed({extra, "service", "train", "dev"})):
        installed = Version(importlib.metadata.version(name)).public
        if pinned.get(name) != installed:
            wrong[name] = (installed, pinned.get(name, "not pinned"))
    assert wrong == {}, "installed version, pin"


def test_pins_satisfy_pyproject() -> None:
    for pinned in (pins(), pins("constraints-gpu.txt")):
        for requirement in declared():
            version = pinned.get(str(canonicalize_name(requirement.name)))
            assert version is None or requirement.specifier.contains(version), str(requirement)


def test_torch_is_the_release_that_needs_no_cuda() -> None:
    assert pins()["torch"] == "2.13.0"


def test_sorted_for_readable_diffs() -> None:
    for file in FILES:
        names = list(pins(file))
        assert names == sorted(names)


@pytest.mark.parametrize(
    "line",
    ["torch>=2.13", "torch==2.13.0+cpu", "-e .", "x @ file:///x.whl", "torch==2.*", "click", ""],
)
def test_loose_lines_are_no_pins(line: str) -> None:
    assert PIN.fullmatch(line) is None
