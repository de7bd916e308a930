"""Starting the command line imports only what the command needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.cli import COMMANDS
from tests.house.source import ROOT

HEAVY = {"torch", "transformers", "langgraph", "faiss", "bm25s", "trafilatura", "huggingface_hub"}

PROBE = """
import json, sys
import ragwright
sys.argv = ["ragwright", *sys.argv[1:]]
try:
    ragwright.main()
except SystemExit as stop:
    status = stop.code
else:
    status = 0
print(json.dumps({"status": status, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def start(*arguments: str) -> tuple[int, set[str], str]:
    """Exit status, top-level modules imported, and standard output of one command."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=120,
    )
    report = json.loads(run.stderr.splitlines()[-1])
    modules = {name.split(".")[0] for name in report["modules"]}
    return report["status"] or 0, modules, run.stdout


def test_help_imports_nothing_heavy() -> None:
    status, modules, output = start("--help")
    assert status == 0
    assert "Usage: ragwright" in output
    assert modules & (HEAVY | {"pydantic", "numpy", "ruamel", "tqdm"}) == set()
    assert "click" in modules


def test_help_names_every_command() -> None:
    _, _, output = start("--help")
    listed = {line.split()[0] for line in output.partition("Commands:")[2].splitlines() if line}
    assert listed == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_without_model_libraries(name: str) -> None:
    status, modules, output = start(name, "--help")
    assert status == 0
    assert f"Usage: ragwright {name}" in output
    assert modules & HEAVY == set()


def test_validate_loads_no_model_library() -> None:
    status, modules, output = start("workflows", "validate", "workflows/library/closed_book.yaml")
    assert (status, modules & HEAVY) == (0, set()), output


def test_importing_inference_loads_no_torch() -> None:
    code = "import sys, inference, retrieval, workflows; print('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert {name.split(".")[0] for name in run.stdout.split()} & HEAVY == set()


def test_version_is_that_of_pyproject() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert start("--version")[2].split()[-1] == project["version"]


def test_unknown_command_is_refused_with_status_2() -> None:
    run = _script("rnu")
    assert run.returncode == 2
    assert "rnu" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_installed_script_starts_from_any_folder(tmp_path: Path) -> None:
    run = _script("--help", cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_make_help_speaks() -> None:
    run = subprocess.run(
        ["make", "--no-print-directory", "help"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0
    assert "make demo" in run.stdout and "make serve" in run.stdout


def test_make_serve_installs_fetches_and_serves() -> None:
    plan = subprocess.run(
        ["make", "--no-print-directory", "-n", "serve"], capture_output=True, text=True, cwd=ROOT
    )
    steps = [line.partition("/ragwright ")[2] for line in plan.stdout.splitlines()]
    wanted = ["models pull default", "models pull minilm", "serve --embedded"]
    assert [step for step in steps if step] == wanted


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("PYTHON=no-such-python", "Python 3.11 or later"),
        ("PYTHON=false", "Python 3.11 or later"),
        ("CC=no-such-cc", "C compiler"),
    ],
)
def test_missing_tools_are_named(setting: str, message: str) -> None:
    run = subprocess.run(
        ["make", "--no-print-directory", "tools", setting],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 2
    assert message in run.stderr and setting.partition("=")[2] in run.stderr


def _script(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "ragwright"), *arguments]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, capture_output=True, text=True, timeout=60, **options
    )
