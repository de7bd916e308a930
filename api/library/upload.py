"""Uploads on their way in: kept as numbered files, read by a child process under limits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from api.library.errors import BadUpload, LibraryError, StorageFull
from api.library.quota import Quota

ORDER, PARSED = "order.json", "parsed.jsonl"
LONGEST_NAME = 200

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the six packages."""


@dataclass(frozen=True)
class Given:
    """A file of an upload: the name it came under, which is a label here and never a path."""

    name: str
    content: IO[bytes]


@dataclass(frozen=True)
class Read:
    """What the files of an upload hold: `items` documents, or facts and names."""

    items: int
    characters: int


def check_file_name(name: str, formats: Iterable[str]) -> str:
    """The suffix of a file's name; raises BadUpload for one that could be more than a label."""
    parts = PurePosixPath(name).parts
    suffix = PurePosixPath(name).suffix.lower()
    plain = (
        0 < len(name) <= LONGEST_NAME
        and name.isprintable()
        and "\\" not in name
        and not name.startswith("/")
        and ".." not in parts
    )
    if not plain:
        raise BadUpload(
            [
                f"the file name {name[:80]!a} must be 1 to {LONGEST_NAME} printable characters "
                "without '..', a backslash or a leading '/'; rename the file"
            ]
        )
    if suffix not in formats:
        known = " ".join(formats)
        raise BadUpload([f"{name}: the format {suffix!r} is not supported; send one of {known}"])
    return suffix


def keep(
    files: Sequence[Given], folder: Path, formats: Iterable[str], quota: Quota, room: int
) -> int:
    """Write files as 0000.pdf, 0001.txt ... with their names in order.json; bytes written.

    Raises BadUpload for bad names, too many files, or more than `room` bytes.
    """
    formats = tuple(formats)
    if not files:
        raise BadUpload(["no file was sent; send at least one"])
    if len(files) > quota.files:
        raise BadUpload([f"{len(files)} files, {quota.files} are allowed; send them in parts"])
    names = [file.name for file in files]
    order, written = [], 0
    for number, file in enumerate(files):
        suffix = check_file_name(file.name, formats)
        if names.index(file.name) < number:
            raise BadUpload([f"{file.name}: sent twice; rename one of them"])
        target = f"{number:04}{suffix}"
        size = _copy(file, folder / target, min(quota.file_bytes, room - written))
        order.append([target, file.name])
        written += size
    (folder / ORDER).write_text(json.dumps(order), encoding="utf-8")
    return written


def _copy(file: Given, target: Path, most: int) -> int:
    size = 0
    with target.open("wb") as out:
        while chunk := file.content.read(2**20):
            size += len(chunk)
            if size > most:
                raise BadUpload([f"{file.name}: larger than {max(most, 0)} bytes; send less"])
            out.write(chunk)
    return size


def keep_rows(rows: Iterable[Any], folder: Path) -> None:
    """Write rows that need no reading; what the child would have written."""
    with (folder / PARSED).open("wb") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


def rows(folder: Path) -> Iterator[Any]:
    """The rows of an upload that was read."""
    with (folder / PARSED).open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def parse(kind: str, folder: Path, quota: Quota) -> Read:
    """Read the kept files in a process of its own, which may crash, hang or grow without harm.

    Raises BadUpload with every fault that the files have.
    """
    command = [sys.executable, "-m", "api.library.parse", kind, str(folder), _limits(quota)]
    try:
        done = subprocess.run(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=quota.seconds * 2 + 20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_much(quota) from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGXFSZ):
        raise _too_much(quota)
    if done.returncode < 0:
        raise BadUpload([f"a file broke its reader ({signal.Signals(-done.returncode).name})"])
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"])[-1]
        if "MemoryError" in last:
            raise _too_much(quota) from None
        if "No space left" in last:
            raise StorageFull("the disk is full; nothing was changed") from None
        raise LibraryError(f"the reader of uploads failed: {last[:200]}") from None
    if report["faults"]:
        raise BadUpload(report["faults"])
    return Read(report["items"], report["characters"])


def _too_much(quota: Quota) -> BadUpload:
    return BadUpload(
        [
            f"reading the files took more than {quota.seconds} s, {quota.memory} bytes of memory "
            f"or {quota.characters} characters; send less at a time"
        ]
    )


def _limits(quota: Quota) -> str:
    names = ("characters", "pages", "seconds", "memory", "documents")
    return json.dumps({name: getattr(quota, name) for name in names})


def _environment() -> dict[str, str]:
    """What the child needs; nothing of what the service was told."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}


def clear(folder: Path) -> None:
    """Remove a folder and what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
