"""vLLM's server where it cannot start; where it can, tests/integration runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from inference.engine import VLLMConfig
from inference.errors import InferenceInputError, ServerUnavailable
from inference.vllm.server import Server, importable


@pytest.fixture
def hollow(tmp_path: Path) -> Path:
    """An environment that looks as if it held vLLM, and whose Python finds none."""
    packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "vllm"
    packages.mkdir(parents=True)
    (packages / "__init__.py").touch()
    (tmp_path / "env" / "bin").mkdir()
    (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path / "env"


def test_an_absent_environment_is_named_with_the_way_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGWRIGHT_VLLM_ENV", str(tmp_path / "nothing here"))
    with pytest.raises(InferenceInputError, match=r"nothing here.*make vllm-env"):
        VLLMConfig().open()


def test_a_server_that_ends_while_it_starts_is_quoted(
    hollow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGWRIGHT_VLLM_ENV", str(hollow))
    with pytest.raises(ServerUnavailable, match=r"status 1 while it started: .*No module named"):
        Server(VLLMConfig(startup_seconds=60), tmp_path)


def test_a_workflow_cannot_name_programs_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="environment"):
        VLLMConfig.model_validate({"environment": str(tmp_path)})


def test_a_named_environment_keeps_vllm_out_of_this_process(
    hollow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAGWRIGHT_VLLM_ENV", raising=False)
    monkeypatch.syspath_prepend(str(hollow / "lib" / "python3.11" / "site-packages"))
    assert importable()
    monkeypatch.setenv("RAGWRIGHT_VLLM_ENV", str(hollow))
    assert not importable()
