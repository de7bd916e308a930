"""`ragwright keys`: made, listed, rotated, revoked; only what was made shows a secret."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from tests.api.conftest import Ragwright


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("RAGWRIGHT_REDIS_URL", redis_url)
    monkeypatch.setenv("RAGWRIGHT_NAMESPACE", f"c{secrets.token_hex(6)}")


def test_a_keys_life(ragwright: Ragwright) -> None:
    words = ("keys", "create", "--tenant", "alpha", "--scope", "runs", "--note", "ci", "--json")
    status, output, _ = ragwright(*words)
    made = json.loads(output)
    assert (status, made["tenant"], made["scopes"], made["note"]) == (0, "alpha", ["runs"], "ci")
    secret = made["key"].split("_", 2)[2]
    status, output, _ = ragwright("keys", "rotate", made["id"], "--overlap", 60)
    assert status == 0 and output.startswith("rw_") and len(output.splitlines()) == 1
    status, output, _ = ragwright("keys", "revoke", made["id"])
    assert (status, output) == (0, f"{made['id']} is revoked\n")
    status, output, _ = ragwright("keys", "list", "--json")
    states = [(row["scopes"], row["revoked_at"] is None) for row in json.loads(output)["keys"]]
    assert states == [(["runs"], False), (["runs"], True)]
    _, shown, _ = ragwright("keys", "list")
    assert secret not in output + shown and "revoked" in shown and "works" in shown


def test_without_scopes_a_key_has_all(ragwright: Ragwright) -> None:
    made = json.loads(ragwright("keys", "create", "--tenant", "alpha", "--json")[1])
    assert made["scopes"] == ["runs", "infer", "read", "write", "admin"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("revoke", "nokey"), "no key 'nokey'"),
        (("rotate", "nokey"), "no key 'nokey'"),
        (("create", "--tenant", "A B"), "tenant 'A B'"),
        (("create", "--tenant", "a", "--scope", "all"), "'all'"),
        (("create",), "--tenant"),
    ],
)
def test_what_is_refused(ragwright: Ragwright, words: tuple[str, ...], said: str) -> None:
    status, output, problem = ragwright("keys", *words)
    assert (status, output, len(problem.splitlines())) == (2, "", 1)
    assert said in problem


def test_no_server(ragwright: Ragwright, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAGWRIGHT_REDIS_URL")
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path))
    status, _, problem = ragwright("keys", "list")
    assert status == 2 and "RAGWRIGHT_REDIS_URL" in problem
