"""Calls that run foreign code, and traces of the machine the project was written on."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from tests.house.source import PACKAGES, ROOT, Source, sources

CALLS = {"eval", "exec", "compile", "torch.load", "torch.jit.load", "yaml.load", "os.system"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
KEYWORDS = {"trust_remote_code", "shell", "allow_pickle", "weights_only"}
"""Keywords that may not be true; `weights_only` marks a torch.load under another name."""

MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|work|Users|opt/(?:pypi|wheels))/[\w.-]+"
    r"|https?://(?:[\w.-]*(?:pypi|mirror|artifactory|nexus)[\w.-]*)"
    r"|--(?:extra-)?index-url"
)


def forbidden(source: Source) -> list[str]:
    """The forbidden calls and imports of one file."""
    found = []
    for item in source.imports():
        if item.module and item.module.split(".")[0] in MODULES:
            found.append(f"{source.place}:{item.line}: imports {item.module}")
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in CALLS or name.removeprefix("builtins.") in {"eval", "exec"}:
            found.append(f"{source.place}:{node.lineno}: calls {name}")
        for keyword in node.keywords:
            fine = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in KEYWORDS and not fine:
                found.append(f"{source.place}:{node.lineno}: sets {keyword.arg}")
    return found


def test_nothing_runs_foreign_code() -> None:
    files = [*sources(*PACKAGES, "tests"), Source.read(ROOT / "ragwright.py")]
    assert [line for source in files for line in forbidden(source)] == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "import pickle",
        "def f():\n    from pickle import loads",
        "import yaml",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_guard_sees(code: str) -> None:
    assert forbidden(Source(ROOT / "api" / "x.py", "api.x", code))


@pytest.mark.parametrize(
    "code", ["model.eval()", "re.compile(p)", "np.load(p, allow_pickle=False)", "graph.compile()"]
)
def test_the_guard_lets_pass(code: str) -> None:
    assert forbidden(Source(ROOT / "api" / "x.py", "api.x", code)) == []


def test_no_trace_of_a_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if listed.returncode:
        pytest.skip("git does not know this folder, so its files cannot be listed")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.name == "test_forbidden.py" or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match[0]}" for match in MACHINE.finditer(text)]
    assert found == []


@pytest.mark.parametrize("text", ["see /home/me/x", "pip --index-url x", "/work/main/.venv"])
def test_the_machine_pattern_matches(text: str) -> None:
    assert MACHINE.search(text)
