"""The six package names are ours alone, or the command says who else has them."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.source import PACKAGES, ROOT

CACHES = shutil.ignore_patterns("__pycache__", ".*_cache")


def test_only_we_own_the_package_names() -> None:
    owners = importlib.metadata.packages_distributions()
    assert {name: set(owners.get(name, [])) for name in PACKAGES} == {
        name: {"ragwright"} for name in PACKAGES
    }


def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """Prompts, workflows and typing markers included; built from a copy, to leave no traces."""
    copy = tmp_path / "project"
    for name in (*PACKAGES, "ragwright.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=CACHES)
        else:
            shutil.copy(ROOT / name, copy / name)
    want = {p.relative_to(copy).as_posix() for n in PACKAGES for p in (copy / n).rglob("*.*")}
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "--no-index", "--wheel-dir", str(tmp_path), str(copy)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {*want, "ragwright.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_foreign_package_earlier_on_the_path_is_named(package: str, tmp_path: Path) -> None:
    _install(_wheel(tmp_path, package), tmp_path / "site")
    run = _ragwright(tmp_path / "site")
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1
    for part in (repr(package), "crowded-name 3.1", "environment of its own"):
        assert part in run.stderr


def test_a_package_without_metadata_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text("", encoding="utf-8")
    run = _ragwright(tmp_path)
    assert run.returncode == 2
    assert str(tmp_path / "agents.py") in run.stderr


def test_files_merged_into_our_folder_are_noticed(tmp_path: Path) -> None:
    """Both distributions in one site-packages folder, as pip would put them."""
    site = tmp_path / "site"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, site / package, ignore=CACHES)
    shutil.copy(ROOT / "ragwright.py", site)
    assert _ragwright(site, "--help").returncode == 0
    _install(_wheel(tmp_path, "graphs"), site)
    run = _ragwright(site, "--help")
    assert run.returncode == 2
    assert "'graphs' is also shipped by distribution crowded-name 3.1" in run.stderr


def test_a_similar_name_is_no_conflict(tmp_path: Path) -> None:
    _install(_wheel(tmp_path, "agents_toolkit"), tmp_path / "site")
    assert _ragwright(tmp_path / "site").returncode == 0


def _wheel(folder: Path, package: str) -> Path:
    """A wheel of a distribution `crowded-name` with one top-level package."""
    files = {
        f"{package}/__init__.py": "",
        "crowded_name-3.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: crowded-name\n"
        "Version: 3.1\n",
        "crowded_name-3.1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{name},sha256={digest.decode()},{len(text)}\n"
    files["crowded_name-3.1.dist-info/RECORD"] = record
    path = folder / "crowded_name-3.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def _install(wheel: Path, site: Path) -> None:
    """What an installer does with a pure wheel: unpack it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def _ragwright(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command with `path` in front of the module search path."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "ragwright"), *(arguments or ["--help"])],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
