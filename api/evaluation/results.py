"""Results of an evaluation on disk: one row per workflow and question, as each is finished."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from api.evaluation.errors import EvaluationError, EvaluationInputError
from api.evaluation.manifest import NAME, read_order, require_same
from api.evaluation.synthetic import evals_home

ROWS = "rows.jsonl"
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Row:
    """What a workflow made of a question, and its scores.

    `citations` and `recall` are None where the workflow tells of no passages, `rounds`,
    `malformed_turns` and `ending` where it has none. A row with an `error` is a failed one: it
    scores 0, with its partial answer beside it. `usage` is None where the run could not begin.
    `queries` are what it searched for, None where the workflow does not tell.
    """

    workflow: str
    question: str
    answer: str | None
    exact_match: float
    f1: float
    recall: float | None
    rounds: int | None
    malformed_turns: int | None
    ending: str | None
    usage: dict[str, Any] | None
    citations: list[dict[str, Any]] | None
    error: dict[str, str] | None
    queries: list[str] | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Row:
        """A row as it was read; raises TypeError where it is none."""
        return cls(**{one.name: plain[one.name] for one in fields(cls) if one.name in plain})


class Results:
    """The folder of one evaluation: manifest.json, rows.jsonl, result.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[tuple[str, str], Row] = {}
        self._file: IO[bytes] | None = None

    @classmethod
    @contextmanager
    def working(
        cls, folder: Path | None, manifest: Mapping[str, Any], *, resume: bool
    ) -> Iterator[Results]:
        """The folder, locked: a fresh one, or with `resume` one of the same manifest.

        Raises EvaluationInputError for a folder that is used, missing or of another evaluation.
        """
        if folder is None:
            if resume:
                raise EvaluationInputError("--resume needs --out FOLDER, where the results are")
            folder = evals_home() / "results" / secrets.token_hex(6)
        results = cls(folder.absolute())
        if resume:
            require_same(read_order(folder / NAME)[1], manifest, folder)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise EvaluationInputError(
                f"{folder}: exists already; go on there with --resume, or give another --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock", timeout=0):
                if not resume:
                    _write(folder / NAME, manifest)
                results._open()
                try:
                    yield results
                finally:
                    results._close()
        except Timeout:
            raise EvaluationInputError(
                f"{folder}: another process evaluates there; wait for it or give another --out"
            ) from None
        except OSError as error:
            raise EvaluationError(
                f"{folder}: cannot write results ({error.strerror or error}); what was finished "
                "is kept, go on with --resume"
            ) from error

    def add(self, row: Row) -> None:
        """Write a finished row, to the disk."""
        assert self._file is not None
        line = json.dumps(asdict(row), ensure_ascii=False, sort_keys=True) + "\n"
        self._file.write(line.encode("utf-8", "surrogatepass"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows[row.workflow, row.question] = row

    def conclude(self, result: Mapping[str, Any]) -> None:
        """Keep the summary beside the rows."""
        _write(self.folder / RESULT, result)

    def _open(self) -> None:
        """Read the rows that are there; a line that was cut short by a kill is taken away."""
        file = self.folder / ROWS
        self.rows, whole = read_rows(file)
        self._file = file.open("ab")
        self._file.truncate(whole)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_rows(file: Path) -> tuple[dict[tuple[str, str], Row], int]:
    """The rows of a file, and how many of its bytes they take up; none where it is missing."""
    content = file.read_bytes() if file.is_file() else b""
    whole = content.rfind(b"\n") + 1
    found: dict[tuple[str, str], Row] = {}
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            row = Row.of(json.loads(line.decode("utf-8", "surrogatepass")))
        except (ValueError, TypeError):
            raise EvaluationInputError(
                f"{file}:{number}: damaged, no row of results; take the line out and go on"
            ) from None
        found[row.workflow, row.question] = row
    return found, whole


def _write(file: Path, value: Mapping[str, Any]) -> None:
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    scratch.write_bytes(text.encode("utf-8", "surrogatepass"))
    scratch.replace(file)
