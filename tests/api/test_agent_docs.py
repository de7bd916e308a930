"""The examples of docs/agents.md, docs/drag.md and docs/observability.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.models import models_home
from tests.api.client.conftest import working
from tests.api.http.conftest import redis_url, settings, site, tiny
from tests.api.http.site import Site
from tests.house.source import ROOT

__all__ = ["redis_url", "settings", "site", "tiny"]

PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = {
    f"{page} {number}": text
    for page in ("agents", "drag", "observability")
    for number, text in enumerate(PYTHON.findall((ROOT / "docs" / f"{page}.md").read_text("utf-8")))
}
AGAINST_A_SERVER = [name for name, text in EXAMPLES.items() if "RAGWRIGHT_URL" in text]
HERE = sorted(EXAMPLES.keys() - set(AGAINST_A_SERVER))


def run(example: str, folder: Path, **environment: str) -> None:
    """Run an example in a folder that has the sample data."""
    (folder / "example.py").write_text(example, encoding="utf-8")
    (folder / "data").symlink_to(ROOT / "data")
    done = subprocess.run(
        [sys.executable, "example.py"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert "assert" in example, "an example shows what comes of it"


@pytest.mark.default_model
@pytest.mark.parametrize("name", HERE)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    run(EXAMPLES[name], tmp_path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RAGWRIGHT_HOME of a server that has the models which are here."""
    with pytest.MonkeyPatch.context() as patch:
        models, folder = models_home(), tmp_path_factory.mktemp("home")
        (folder / "models").symlink_to(models)
        patch.setenv("RAGWRIGHT_HOME", str(folder))
        yield folder


@pytest.mark.default_model
def test_the_example_against_a_server_runs(site: Site, tmp_path: Path) -> None:
    [name] = AGAINST_A_SERVER
    with working(site.settings):
        run(EXAMPLES[name], tmp_path, RAGWRIGHT_URL=site.url, RAGWRIGHT_KEY=site.alpha)


def test_the_pages_have_examples() -> None:
    assert len(HERE) >= 6
