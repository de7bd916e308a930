"""The command line in this process: exit status, standard output, standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from api.cli import main

Ragwright = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ragwright(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ragwright:
    """Run `ragwright ARGUMENTS...` as its console script would."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ragwright", *map(str, arguments)])
        capsys.readouterr()
        status: Any = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        return (status, *capsys.readouterr())

    return call
