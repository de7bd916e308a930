"""The suite runs without a network and turns every warning into an error."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from pytest_socket import SocketConnectBlockedError

from tests.conftest import NetworkBlocked
from tests.house.source import ROOT

OUTSIDE = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]
"""Documentation addresses: nobody has them, so a hole in the guard reaches nobody either."""


@pytest.mark.parametrize(("family", "address"), OUTSIDE)
def test_addresses_outside_are_refused(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as client, pytest.raises(SocketConnectBlockedError, match=address):
        client.connect((address, 80))


@pytest.mark.parametrize(("family", "address"), OUTSIDE)
def test_the_side_doors_are_closed(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as client, pytest.raises(NetworkBlocked, match=address):
        client.connect_ex((address, 80))
    with (
        socket.socket(family, socket.SOCK_DGRAM) as sender,
        pytest.raises(NetworkBlocked, match=address),
    ):
        sender.sendto(b"x", (address, 53))
    with pytest.raises(NetworkBlocked, match=r"host\.invalid"):
        socket.getaddrinfo("host.invalid", 80)


async def _connect() -> None:
    await asyncio.open_connection("192.0.2.1", 80)


def test_asyncio_is_refused_too() -> None:
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        asyncio.run(_connect())


def test_loopback_is_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        peer, _ = server.accept()
        with peer:
            client.sendall(b"here")
            assert peer.recv(4) == b"here"


def test_warnings_are_errors() -> None:
    with pytest.raises(DeprecationWarning, match="going away"):
        warnings.warn("going away", DeprecationWarning, stacklevel=1)


def test_unraisable_errors_fail_a_test(tmp_path: Path) -> None:
    """A file left open warns only when it is collected; that must fail the run too."""
    (tmp_path / "test_leak.py").write_text(
        "import gc\n\ndef test_leak():\n    open(__file__)\n    gc.collect()\n", encoding="utf-8"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert run.returncode == 1, run.stdout
    assert "ResourceWarning" in run.stdout


def test_unknown_markers_are_refused(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getoption("--strict-markers")
    assert pytestconfig.getini("xfail_strict") is True
