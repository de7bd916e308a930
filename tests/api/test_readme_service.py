"""The README's section on the service, run as it stands: one shell, one server, one queue."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from inference.models import models_home
from tests.house.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## As a service\n")[2].partition("\n## ")[0]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = ("curl", "pkill")


def script(folder: Path, port: int) -> str:
    """All blocks as one shell script, on a port of its own and with every step said before it.

    The wait before the kill begins when a worker has the job, however slow the machine is.
    """
    lines = ["set -eu"]
    for number, (language, text) in enumerate(BLOCK.findall(SECTION)):
        if language == "python":
            (folder / f"{number}.py").write_text(text.replace(":8080", f":{port}"), "utf-8")
            text = f"python3 {number}.py\n"
        lines += [f"echo '== {number}'", text]
    whole = "\n".join(lines)
    assert whole.count("serve --embedded &") == 1 and whole.count("sleep 6\n") == 1
    whole = whole.replace("serve --embedded &", f"serve --embedded --port {port} &")
    begun = "until ragwright jobs show $ID | grep -q running; do sleep 0.5; done\nsleep 3\n"
    return whole.replace("sleep 6\n", begun).replace(":8080", f":{port}")


@pytest.mark.default_model
@pytest.mark.timeout(280)
def test_the_service_section_runs(tmp_path: Path) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cache = tmp_path / ".cache" / "ragwright"
    cache.mkdir(parents=True)
    (cache / "models").symlink_to(models_home())
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, call in (("python3", ""), ("ragwright", " -m api.cli")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{call} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "RAGWRIGHT" not in name}
    environment |= {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / ".cache"),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "said"
    with log.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-c", script(tmp_path, port)],
            cwd=tmp_path,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        shell.wait(200)
    finally:  # the server too, where the section did not come to its end
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(60)
    said = log.read_text(encoding="utf-8")
    assert shell.returncode == 0, said
    assert said.count('"state":"completed"') >= 1, "the run through HTTP"
    assert re.search(r"worker \d+ ended|started again|again in", said), said
    assert "attempt 2" in said, said
