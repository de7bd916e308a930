"""Runs on disk: manifest, journal of steps, checkpoints, result; one folder a run.

The manifest says everything that a replay needs: the workflow's text, inputs, seed, model, index.
The journal is written step by step, so that what an interrupted run spent is never forgotten.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

from inference.models import models_home
from workflows.errors import WorkflowError, WorkflowInputError
from workflows.events import Event, RunFinished, TextDelta
from workflows.keeping import NotKept
from workflows.past import Past, past_of

KEPT_RUNS = 200
"""Runs kept on disk; the oldest finished ones beyond are removed."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class RunBusy(WorkflowError):
    """Another process is working on this run."""

    code = "run_busy"


@dataclass(frozen=True)
class RunManifest:
    """What a run was started with.

    `files` holds the text of the workflow and of every one it calls, by keys that mean the same
    on any host (`workflows.shelves`); `workflow_file` is where the main one was found.
    """

    run_id: str
    workflow: str
    workflow_file: str
    workflow_sha256: str
    workflow_text: str
    inputs: Mapping[str, Any]
    seed: int
    engine: str | None = None
    model: str | None = None
    index: str | None = None
    index_sha256: str | None = None
    graph: str | None = None
    graph_sha256: str | None = None
    budget: Mapping[str, float] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""


def require_run_id(run_id: str) -> str:
    """The id itself; raises WorkflowInputError unless it is safe as the name of a folder."""
    if not _RUN_ID.fullmatch(run_id):
        raise WorkflowInputError(
            f"run id {run_id!r} must consist of letters, digits, '_', '-' and '.', at most 128, "
            "and begin with a letter or digit"
        )
    return run_id


def runs_home() -> Path:
    """The folder of all runs, beside the models."""
    return models_home().parent / "runs"


class RunFolder:
    """The folder of one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = require_run_id(run_id)
        self.path = runs_home() / run_id
        self.checkpoints = self.path / "checkpoints.sqlite"
        self._manifest = self.path / "manifest.json"
        self._journal = self.path / "journal.jsonl"
        self._result = self.path / "result.json"

    @classmethod
    def create(cls, manifest: RunManifest) -> RunFolder:
        """A folder for a run that begins; raises WorkflowInputError if the id is taken."""
        folder = cls(manifest.run_id)
        try:
            folder.path.mkdir(parents=True)
        except FileExistsError:
            raise WorkflowInputError(
                f"run {manifest.run_id!r} exists already; resume it or choose another id"
            ) from None
        _write(folder._manifest, asdict(manifest))
        return folder

    @classmethod
    def existing(cls, run_id: str) -> RunFolder:
        """The folder of an earlier run; raises WorkflowInputError if there is none."""
        folder = cls(run_id)
        if not folder._manifest.is_file():
            raise WorkflowInputError(f"no run {run_id!r} under {runs_home()}; check the id")
        return folder

    def manifest(self) -> RunManifest:
        """What the run was started with."""
        return RunManifest(**json.loads(self._manifest.read_text(encoding="utf-8")))

    def result(self) -> dict[str, Any] | None:
        """The result of the latest attempt that ended, if any did."""
        if not self._result.is_file():
            return None
        result: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
        return result

    def past(self) -> Past:
        """What earlier attempts did; a line cut off by a kill is dropped."""
        return past_of(self._lines())

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self._journal.is_file():
            return
        with self._journal.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    @contextmanager
    def working(self) -> Iterator[FolderJournal]:
        """Hold the run for this process and open its journal; raises RunBusy."""
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunBusy(
                f"run {self.run_id!r} is being worked on by another process; wait for it"
            ) from None
        try:
            _end_last_line(self._journal)
            with self._journal.open("ab", buffering=0) as lines:
                yield FolderJournal(lines)
        finally:
            lock.release()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; a completed run needs its checkpoints no longer."""
        _write(self._result, result)
        if result["status"] == "completed":
            for file in self.path.glob(self.checkpoints.name + "*"):
                file.unlink(missing_ok=True)
        prune(KEPT_RUNS)


class FolderJournal:
    """A `workflows.keeping.Journal` of lines in a file, each handed to the system at once.

    Left out are pieces of text, whose tokens stand here, and the result, which has a file of
    its own.
    """

    def __init__(self, lines: RawIOBase) -> None:
        self._lines = lines

    def __call__(self, event: Event) -> None:
        if isinstance(event, TextDelta | RunFinished):
            return
        try:
            self._lines.write(orjson.dumps(event.to_dict(), option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            raise NotKept(
                f"the journal of this run cannot be written: {error.strerror}; make room on the "
                "disk and resume the run"
            ) from error

    async def flush(self) -> None:
        """Every line is with the system already, and survives a kill of this process."""


def prune(keep: int) -> None:
    """Remove the oldest finished runs beyond `keep`; unfinished ones stay."""
    finished = sorted(runs_home().glob("*/result.json"), key=lambda file: file.stat().st_mtime)
    for file in finished[: max(len(finished) - keep, 0)]:
        if json.loads(file.read_text(encoding="utf-8"))["status"] == "completed":
            shutil.rmtree(file.parent, ignore_errors=True)


def _end_last_line(file: Path) -> None:
    """Cut off a line that a kill left unfinished, so that the next one stands alone."""
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def _write(file: Path, value: Mapping[str, Any]) -> None:
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    beside.replace(file)
