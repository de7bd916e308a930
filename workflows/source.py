"""YAML text to plain JSON data with a place for every key and value.

Only what a configuration file needs: YAML 1.2 core scalars, no anchors, aliases, tags, merge
keys or second documents, all of them refused on the event stream before anything is built.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from workflows.errors import Fault, InvalidWorkflow, WorkflowInputError
from workflows.operators import MAX_INTEGER

MAX_BYTES = 256 * 1024
"""Largest workflow file."""
MAX_NESTING = 20
"""Deepest nesting of lists and mappings in a file."""
MAX_VALUES = 20_000
"""Most keys and values of one file."""

Path = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the root."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Mark(NamedTuple):
    """A place in the text: line and column count from 1, `offset` characters from 0."""

    line: int
    column: int
    offset: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A file's data, and where each key and each value stands."""

    file: str
    text: str
    value: Any
    keys: dict[Path, Mark] = field(repr=False)
    values: dict[Path, Mark] = field(repr=False)

    def mark(self, path: Path, *, key: bool = False) -> Mark:
        """Place of the value (or of its key) at the path, or of its nearest known ancestor."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Mark(1, 1, 0))

    def fault(
        self, path: Path, code: str, message: str, *, key: bool = False, offset: int = 0
    ) -> Fault:
        """A fault at a key or value; `offset` counts characters inside a string value."""
        mark = self.mark(path, key=key)
        return Fault(mark.line, mark.column + self._inside(path, mark, offset), code, message)

    def _inside(self, path: Path, mark: Mark, offset: int) -> int:
        """Columns from the start of a string to its character `offset`, 0 if not told exactly."""
        if not offset:
            return 0
        value = self.at(path)
        quoted = self.text[mark.offset : mark.offset + 1] in ("'", '"')
        start = mark.offset + quoted
        if not isinstance(value, str) or not self.text.startswith(value[:offset], start):
            return 0
        return 0 if "\n" in value[:offset] else offset + quoted

    def at(self, path: Path) -> Any:
        """The value at a path, None where there is none."""
        value = self.value
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def read_source(path: pathlib.Path) -> str:
    """Text of a workflow file; refuses folders, huge files and text that is not UTF-8."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkflowInputError(f"cannot read the workflow file {path}: {reason}") from None
    if len(raw) > MAX_BYTES:
        fault = Fault(1, 1, "too_large", f"the file is larger than {MAX_BYTES} bytes; split it")
        raise InvalidWorkflow(str(path), [fault])
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8 text; save the file as UTF-8"
        raise InvalidWorkflow(str(path), [Fault(line, column, "not_utf8", message)]) from None


def parse_yaml(text: str, file: str) -> Tree:
    """Data and places of a YAML text; raises InvalidWorkflow with every fault that was found."""
    reader = _Reader(text, file)
    reader.check_text()
    try:
        return reader.read()
    except MarkedYAMLError as error:
        raise reader.stop("yaml", _reason(error), _error_mark(error)) from None
    except (YAMLError, ValueError, OverflowError) as error:
        reason = f"not valid YAML: {' '.join(str(error).split())}; check the text near here"
        raise reader.stop("yaml", reason, reader.last) from None


def _reason(error: MarkedYAMLError) -> str:
    parts = [str(part) for part in (error.problem, error.context) if part]
    if error.context and error.context_mark is not None:
        parts[-1] += f" that starts on line {error.context_mark.line + 1}"
    reason = " ".join(" ".join(parts).split()) or "unreadable"
    return (
        f"not valid YAML: {reason}; check indentation, brackets and quotes here "
        "(a text that holds ': ' or ' #' needs quotes)"
    )


def _error_mark(error: MarkedYAMLError) -> Mark:
    mark = error.problem_mark or error.context_mark
    return Mark(1, 1, 0) if mark is None else _mark(mark)


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1, mark.index)


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is being read; `key` waits for its value."""

    container: dict[str, Any] | list[Any]
    path: Path
    key: str | None = None
    waiting: bool = False


class _Reader:
    """Builds data from the event stream with its own stack, so that nesting cannot overflow."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.faults: list[Fault] = []
        self.keys: dict[Path, Mark] = {}
        self.values: dict[Path, Mark] = {}
        self.root: Any = None
        self.stack: list[_Frame] = []
        self.last = Mark(1, 1, 0)
        self.count = 0
        self.dropped = 0

    def stop(self, code: str, message: str, mark: Mark) -> InvalidWorkflow:
        """The error that ends the reading, with the faults found before."""
        self.add(code, message, mark)
        return InvalidWorkflow(self.file, self.faults)

    def add(self, code: str, message: str, mark: Mark) -> None:
        """Note a fault."""
        self.faults.append(Fault(mark.line, mark.column, code, message))

    def check_text(self) -> None:
        """Refuse what must not even reach the YAML scanner."""
        if len(self.text) > MAX_BYTES:
            raise self.stop("too_large", f"more than {MAX_BYTES} bytes; split it", self.last)
        if not self.text.strip():
            raise self.stop("empty", "the file is empty; see `ragwright schema`", self.last)
        if found := _CONTROL.search(self.text):
            at = found.start()
            line_start = self.text.rfind("\n", 0, at) + 1
            mark = Mark(self.text.count("\n", 0, at) + 1, at - line_start + 1, at)
            message = f"control character U+{ord(found[0]):04X}; remove it or write an escape"
            raise self.stop("control_character", message, mark)

    def read(self) -> Tree:
        """The whole document."""
        documents = 0
        for event in self._events():
            self.last = _mark(event.start_mark)
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.stop(
                        "documents",
                        "a second document starts here; keep one document a file",
                        self.last,
                    )
                if event.version not in (None, (1, 2)) or event.tags:
                    self.add("directive", "only %YAML 1.2 is read; remove this line", self.last)
            elif isinstance(event, NodeEvent):
                self._node(event)
            elif type(event).__name__ in ("MappingEndEvent", "SequenceEndEvent"):
                self._close()
        if documents == 0 or (self.root is None and not self.faults):
            raise self.stop("empty", "the file holds no value; see `ragwright schema`", self.last)
        if self.faults:
            raise InvalidWorkflow(self.file, self.faults)
        return Tree(self.file, self.text, self.root, self.keys, self.values)

    def _events(self) -> Iterator[Event]:
        events: Iterator[Event] = YAML(typ="safe", pure=True).parse(self.text)
        return events

    def _node(self, event: Any) -> None:
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.stop("too_many", f"more than {MAX_VALUES} values; split it", self.last)
        self._refuse_properties(event)
        frame = self.stack[-1] if self.stack else None
        if frame and isinstance(frame.container, dict) and not frame.waiting:
            self._key(frame, event)
            return
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            container: Any = {} if isinstance(event, MappingStartEvent) else []
            self._push(container, self._place(container))
        else:
            self._place(self._scalar(event) if isinstance(event, ScalarEvent) else None)

    def _push(self, container: Any, path: Path) -> None:
        self.stack.append(_Frame(container, path))
        if len(self.stack) > MAX_NESTING:
            message = f"nested deeper than {MAX_NESTING} levels; flatten it"
            raise self.stop("too_deep", message, self.last)

    def _refuse_properties(self, event: Any) -> None:
        if isinstance(event, AliasEvent):
            self.add(
                "alias", f"an alias (*{event.anchor}) is not read; write the value out", self.last
            )
        elif event.anchor is not None:
            self.add(
                "anchor", f"an anchor (&{event.anchor}) is not read; write the value out", self.last
            )
        if getattr(event, "tag", None) is not None:
            self.add(
                "tag",
                f"a tag ({event.tag}) is not read; remove it, or quote the value to mean a text",
                self.last,
            )

    def _key(self, frame: _Frame, event: Any) -> None:
        """Take the next key of a mapping; a bad key is noted and its value still read."""
        frame.waiting = True
        self.dropped += 1
        frame.key = f"\x00{self.dropped}"
        assert isinstance(frame.container, dict)
        if not isinstance(event, ScalarEvent):
            self.add("key", "a key must be a plain string; quote it", self.last)
            if not isinstance(event, AliasEvent):
                # The pairs inside a complex key are read as a value that nobody will see.
                self._push({} if isinstance(event, MappingStartEvent) else [], ())
                frame.waiting = False
            return
        key = self._scalar(event)
        if event.value == "<<" and event.style is None:
            self.add("merge", "a merge key (<<) is not read; write the keys out", self.last)
        elif not isinstance(key, str):
            self.add("key", f"the key {event.value!r} is not a plain string; quote it", self.last)
        elif key in frame.container:
            first = self.keys[(*frame.path, key)].line
            message = f"the key {key!r} stands twice (first on line {first}); remove one"
            self.add("duplicate_key", message, self.last)
        else:
            frame.key = key
            self.keys[(*frame.path, key)] = self.last

    def _place(self, value: Any) -> Path:
        """Put a value where it belongs; returns its path."""
        path: Path = ()
        if not self.stack:
            self.root = value
        else:
            frame = self.stack[-1]
            if isinstance(frame.container, dict):
                assert frame.key is not None
                path = (*frame.path, frame.key)
                frame.container[frame.key] = value
                frame.waiting = False
            else:
                path = (*frame.path, len(frame.container))
                frame.container.append(value)
        self.values[path] = self.last
        return path

    def _close(self) -> None:
        self.stack.pop()
        # A mapping that just read a complex key still waits for that key's value.
        if self.stack and isinstance(self.stack[-1].container, dict):
            frame = self.stack[-1]
            if frame.key is not None and frame.key not in frame.container:
                frame.waiting = True

    def _scalar(self, event: ScalarEvent) -> Any:
        """Value of a scalar by the rules of the YAML 1.2 core schema."""
        word: str = event.value
        if _SURROGATE.search(word):
            self.add("character", "half of a surrogate pair; write the character itself", self.last)
            return None
        if event.style is not None:
            return word
        if word in _NULLS:
            return None
        if word in _BOOLEANS:
            return _BOOLEANS[word]
        if _INTEGER.fullmatch(word):
            return self._integer(word)
        if _FLOAT.fullmatch(word):
            number = float(word)
            if math.isfinite(number):
                return number
        elif not _NOT_FINITE.fullmatch(word):
            return word
        self.add("number", f"the number {word} is not finite; leave it out or quote it", self.last)
        return None

    def _integer(self, word: str) -> int | None:
        if re.match(r"[-+]?0[0-9]", word):
            message = f"the number {word} starts with 0; drop the 0, or quote it to mean a text"
            self.add("number", message, self.last)
            return None
        if len(word) > 25 or abs(number := int(word, 0)) > MAX_INTEGER:
            message = f"the number of {len(word)} digits is too large (at most {MAX_INTEGER})"
            self.add("number", message, self.last)
            return None
        return number
