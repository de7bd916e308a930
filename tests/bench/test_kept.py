"""What a long measurement keeps: found again after a kill, and never mixed with others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.errors import InferenceInputError
from tests.bench import ROOT
from tests.bench.kept import Kept

OPTIONS = {"n": 2, "tokens": 1024, "rows": ["rag_batch1"]}
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.bench.kept import Kept

kept = Kept(Path(sys.argv[1]), {"n": 2})
kept.put(("rag", 0, "plain"), {"ids": [1, 2]})
os.kill(os.getpid(), signal.SIGKILL)
"""


def opened(file: Path, **others: object) -> Kept:
    return Kept(file, {**OPTIONS, **others})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two values."""
    file = tmp_path / "kept.jsonl"
    kept = opened(file)
    kept.put(("rag", 0, "plain"), {"seconds": 0.1 + 0.2, "ids": [[1, 2]]})
    kept.put(("rag", 0, "other"), 7)
    kept.close()
    return file


def test_what_was_kept_is_found_and_gone_on_with(file: Path) -> None:
    kept = opened(file)
    assert kept.get(("rag", 0, "plain")) == {"seconds": 0.1 + 0.2, "ids": [[1, 2]]}
    assert kept.get(("rag", 1, "plain")) is None and len(kept) == 2
    kept.put(("rag", 1, "plain"), [3])
    kept.close()
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4
    again = opened(file)
    assert again.get(("rag", 1, "plain")) == [3]
    again.close()


def test_without_a_file_nothing_is_kept() -> None:
    kept = Kept()
    kept.put(("rag",), 1)
    assert kept.get(("rag",)) is None and len(kept) == 0


def test_wherever_the_last_line_is_torn_the_rest_stays(file: Path) -> None:
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        kept = opened(file)
        ended = sum(len(b"".join(lines[: at + 1])) <= length for at in range(len(lines)))
        assert len(kept) == max(ended - 1, 0)
        kept.put(("next",), 1)
        kept.close()
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
        assert rows[0] == {"made_with": OPTIONS}
        assert rows[-1] == {"key": ["next"], "value": 1}


def test_a_line_is_on_disk_before_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    kept = Kept(file, {"n": 2})
    assert kept.get(("rag", 0, "plain")) == {"ids": [1, 2]}
    kept.close()


def test_a_file_of_other_options_is_refused_by_all_that_differs(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(InferenceInputError) as caught:
        opened(file, tokens=128, model="other")
    said = str(caught.value)
    assert "tokens is 1024 there and 128 here" in said
    assert 'model is null there and "other" here' in said and "n is" not in said
    assert "name another file" in said and file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("my notes", 1),
        ("my notes\n", 1),
        ('{"key": [1], "value": 2}\n', 1),
        (json.dumps({"made_with": OPTIONS}) + "\nnotes\n" + '{"key": ["a"], "value": 1}\n', 2),
        (json.dumps({"made_with": OPTIONS}) + '\n{"key": "a", "value": 1}\n', 2),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InferenceInputError, match=f"notes.txt, line {line}: not what"):
        opened(file)
    assert file.read_text(encoding="utf-8") == text


def test_two_measurements_do_not_share_a_file(file: Path) -> None:
    kept = opened(file)
    with pytest.raises(InferenceInputError, match="in use by another measurement"):
        opened(file)
    kept.close()
    opened(file).close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InferenceInputError, match="No such file or directory"):
        opened(tmp_path / "none" / "kept.jsonl")
