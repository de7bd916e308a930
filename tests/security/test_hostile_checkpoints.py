"""Checkpoints that somebody tampered with: nothing in them is imported or called."""

from __future__ import annotations

import asyncio
import json
import pickle
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ormsgpack
import pytest

from workflows.checkpoints import strict_serializer
from workflows.errors import WorkflowError
from workflows.runs import RunOrder, resume_run, start_run
from workflows.store import RunFolder

CANARY = "hostile_canary"
"""A module in the import path of these tests that must never be loaded."""

TARGETS = [
    ("os", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("shutil", "rmtree"),
    (CANARY, "Boom"),
    (f"{CANARY}.deep", "boom"),
    ("workflows.store", "RunFolder"),
    ("collections", "OrderedDict"),
    ("functools", "partial"),
    ("", ""),
    ("os", "__class__"),
    ("\ud800", "x"),
]


class _Boom:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return __import__, (CANARY,)


def blobs() -> list[tuple[str, bytes]]:
    """A hundred and more values as (type, bytes), as they stand in a checkpoint."""
    found: list[tuple[str, bytes]] = []
    for module, name in TARGETS:
        spelt = (module.encode(errors="replace").decode(), name)
        calls: list[Any] = [
            (*spelt, "touch /tmp/x"),
            (*spelt, {"args": ["x"]}),
            (*spelt, ["touch", "x"], "model_validate_json"),
            (*spelt, {"x": 1}, "__init__"),
        ]
        for code in range(8):
            inner = ormsgpack.packb(calls[code % len(calls)])
            found.append(("msgpack", ormsgpack.packb(ormsgpack.Ext(code, inner))))
    for module, name in TARGETS[:8]:
        path = [*module.split("."), name]
        constructor = {"lc": 2, "type": "constructor", "id": path, "args": ["x"], "kwargs": {}}
        method = {**constructor, "method": "__call__"}
        legacy = {"lc": 1, "type": "constructor", "id": path, "kwargs": {"x": "y"}}
        for value in (constructor, method, legacy):
            found.append(("json", json.dumps(value).encode()))
    found += [("pickle", pickle.dumps(_Boom(), protocol)) for protocol in range(2, 6)]
    good = strict_serializer().dumps_typed({"v": 4, "channel_values": {"n": [1, {"a": "b"}]}})
    found += [(good[0], good[1][:size]) for size in range(0, len(good[1]), 6)]
    deep = b"\x91" * 100_000 + b"\xc0"
    huge = b"\xdd\xff\xff\xff\xff" + b"\x01" * 100
    found += [("msgpack", deep), ("msgpack", huge), ("json", b"[" * 100_000), ("unheard", b"x")]
    return found


_watching: list[str] = []
_on = [False]
_EVENTS = (
    "exec",
    "os.system",
    "subprocess.Popen",
    "pickle.find_class",
    "os.exec",
    "os.posix_spawn",
)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _on[0]:
        return
    if event in _EVENTS or (event == "import" and CANARY in str(arguments[0])):
        _watching.append(f"{event} {arguments!r:.80}")


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[str]]:
    """What was imported or called meanwhile that a checkpoint has no business with."""
    _watching.clear()
    _on[0] = True
    try:
        yield _watching
    finally:
        _on[0] = False


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a trace when it is loaded."""
    trace = tmp_path / "trace"
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / f"{CANARY}.py").write_text(f"open({str(trace)!r}, 'w').close()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return trace


def plain(value: Any, depth: int = 0) -> bool:
    """True for data without behaviour."""
    if isinstance(value, dict):
        return depth > 50 or all(plain(one, depth + 1) for one in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return depth > 50 or all(plain(one, depth + 1) for one in value)
    return value is None or type(value) in (str, int, float, bool, bytes)


def test_there_are_a_hundred() -> None:
    assert len(blobs()) >= 100


def test_the_serializer_imports_and_calls_nothing(canary: Path) -> None:
    serializer = strict_serializer()
    serializer.loads_typed(serializer.dumps_typed({"n": 1}))
    refused = 0
    for kind, blob in blobs():
        before = set(sys.modules)
        with watched() as seen:
            try:
                value = serializer.loads_typed((kind, blob))
            except Exception:
                refused += 1
                continue
            finally:
                assert seen == [], (kind, blob[:80])
        assert plain(value), (kind, blob[:80], type(value))
        assert CANARY not in set(sys.modules) - before
    assert refused > 20
    assert not canary.exists()


SOURCE = """
name: long
state: {n: 0}
nodes:
  add: {use: set, with: {values: {n: "${state.n + 1}"}}}
  ask: {use: interrupt, with: {ask: Go on?}}
edges:
  - {from: start, to: add}
  - {from: add, to: ask}
  - {from: ask, to: end}
outputs: {n: "${state.n}", answer: "${state.answer}"}
"""


def test_a_run_with_a_tampered_checkpoint_is_refused(
    canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    file = tmp_path / "long.yaml"
    file.write_text(SOURCE, encoding="utf-8")
    first = asyncio.run(start_run(RunOrder(str(file), run_id="r")))
    [ask] = first.asks
    database = RunFolder.existing("r").checkpoints
    whole = database.read_bytes()
    texts = {(kind, blob) for kind, blob in blobs() if kind != "msgpack" or b"canary" in blob}
    for table, column in (("checkpoints", "checkpoint"), ("writes", "value")):
        for kind, blob in sorted(texts):
            for leftover in database.parent.glob(database.name + "-*"):
                leftover.unlink()
            database.write_bytes(whole)
            with sqlite3.connect(database) as connection:
                connection.execute(f"UPDATE {table} SET type = ?, {column} = ?", (kind, blob))
            connection.close()
            with watched() as seen, pytest.raises(WorkflowError) as caught:
                asyncio.run(resume_run("r", answers=["yes"]))
            # Loading a workflow makes classes, which is exec to Python; all else would be hostile.
            assert [one for one in seen if not one.startswith("exec (")] == [], (kind, blob[:80])
            assert "checkpoint" in str(caught.value) and "\n" not in str(caught.value)
    assert not canary.exists()
    for leftover in database.parent.glob(database.name + "-*"):
        leftover.unlink()
    database.write_bytes(whole)
    done = asyncio.run(resume_run("r", answers=[f"{ask['id']}=yes"]))
    assert done.outputs == {"n": 1, "answer": "yes"}, "untouched, it goes on"
