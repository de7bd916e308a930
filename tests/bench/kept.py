"""What a long measurement has found so far, one JSON line each, so that a killed one goes on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from inference.errors import InferenceInputError

Key = tuple[str | int, ...]
HEAD = "made_with"


class Kept:
    """Values by key in a file, whose first line says what they were made with.

    A line is on disk before `put` returns; one that a kill has torn is cut off when the file is
    opened again. Without a file nothing is kept, and nothing found.

    Raises InferenceInputError, with the file as it was, where it is of other options (all that
    differ are named), of something else, of a folder that is not there, or in use.
    """

    def __init__(
        self, file: Path | None = None, made_with: Mapping[str, Any] | None = None
    ) -> None:
        self._file = file
        self._found: dict[Key, Any] = {}
        self._lines: BinaryIO | None = None
        if file is None:
            return
        head = json.loads(json.dumps(dict(made_with or {})))
        try:
            self._lines = file.open("a+b")
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(file, head)
        except BlockingIOError:
            self.close()
            raise InferenceInputError(
                f"{file} is in use by another measurement; wait for it, or name another file"
            ) from None
        except OSError as error:
            self.close()
            raise InferenceInputError(
                f"{file} cannot keep what is measured ({error.strerror}); name another file"
            ) from None
        except InferenceInputError:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Key) -> Any:
        """The value under a key as JSON has it, or None."""
        return self._found.get(key)

    def put(self, key: Key, value: Any) -> None:
        """Keep a value, which is not None, for good."""
        if self._lines is not None:
            self._found[key] = value
            self._write({"key": key, "value": value})

    def close(self) -> None:
        """Let the file go."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._lines is not None
        self._lines.write(json.dumps(line).encode() + b"\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())

    def _read(self, file: Path, head: Mapping[str, Any]) -> None:
        assert self._lines is not None
        self._lines.seek(0)
        text = self._lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        first = json.dumps({HEAD: head}).encode()
        if not whole and not first.startswith(text):
            raise _foreign(file, 1)
        rows = [_row(file, at, line) for at, line in enumerate(whole.splitlines(), start=1)]
        if rows:
            _compare(file, rows[0], head)
        for at, row in enumerate(rows[1:], start=2):
            if not isinstance(row.get("key"), list) or row.get("value") is None:
                raise _foreign(file, at)
            self._found[tuple(row["key"])] = row["value"]
        self._lines.truncate(len(whole))
        if not rows:
            self._write({HEAD: head})


def _row(file: Path, at: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise _foreign(file, at)
    return row


def _compare(file: Path, first: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    there = first.get(HEAD)
    if not isinstance(there, dict):
        raise _foreign(file, 1)
    differing = [
        f"{name} is {json.dumps(there.get(name))} there and {json.dumps(head.get(name))} here"
        for name in sorted({*there, *head})
        if there.get(name) != head.get(name)
    ]
    if differing:
        raise InferenceInputError(
            f"{file} was measured otherwise: {'; '.join(differing)}; "
            "start as it was started, or name another file"
        )


def _foreign(file: Path, at: int) -> InferenceInputError:
    return InferenceInputError(
        f"{file}, line {at}: not what a measurement keeps; name another file, or one that is not "
        "there yet"
    )
