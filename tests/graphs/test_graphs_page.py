"""The examples of docs/graphs.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.house.source import ROOT
from workflows.loading import load_workflow

PAGE = (ROOT / "docs" / "graphs.md").read_text(encoding="utf-8")


def fence(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


def test_the_example_runs(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(fence("python"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy; runpy.run_path({str(script)!r})"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert fence("python").count("assert") == 5


def test_the_workflow_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "graph_rag.yaml"
    file.write_text(fence("yaml"), encoding="utf-8")
    assert load_workflow(file).spec.resources["graph"].use == "graph"


def test_the_folder_holds_what_the_page_lists(graph_path: Path) -> None:
    (generation,) = [path for path in graph_path.iterdir() if path.is_dir()]
    listed = PAGE.split("MY_GRAPH/<generation>/")[1].partition("```")[0]
    for file in generation.iterdir():
        stem = re.sub(r"(bm25\.).*", r"\1*", file.name)
        assert stem in listed, file.name
