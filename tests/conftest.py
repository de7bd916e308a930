"""No test talks to the network: what pytest-socket leaves open is closed here.

pytest-socket replaces `socket.connect` while a test runs. This audit hook also sees
`connect_ex`, datagrams and name look-ups, from Python or C, during collection too.
"""

from __future__ import annotations

import faulthandler
import ipaddress
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from inference import Engine
    from inference.native.engine import NativeEngine

STUCK = 120
"""Seconds that the process may take to end after its last test."""

LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
SENDS = {"socket.connect", "socket.sendto", "socket.sendmsg"}


class NetworkBlocked(RuntimeError):
    """A test tried to reach an address other than loopback."""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _block(event: str, arguments: tuple[Any, ...]) -> None:
    if event in LOOKUPS:
        host = arguments[0]
        host = host.decode() if isinstance(host, bytes) else host
        # Reading a numeric address asks nobody; connecting to it is refused below.
        fine = host in (None, "", "localhost") or _address(host) is not None
    elif event in SENDS and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        address = _address(host)
        fine = host in ("", "localhost") or (address is not None and address.is_loopback)
    else:
        return
    if not fine:
        raise NetworkBlocked(f"{event} to {host!r}: tests may reach loopback only")


sys.addaudithook(_block)

# Workers of pytest-xdist, and what they start, leave each other a core; OpenMP reads this when
# torch is first imported. Another number may be set from outside.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where pytest was started with SIGINT ignored, as a background job of a shell is, all that tests
# start would inherit that, and those that press Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def default_engine() -> Iterator[NativeEngine]:
    """The embedded default model under the native engine, float32 on the CPU, opened once."""
    from inference.engine import NativeConfig
    from inference.native.engine import NativeEngine

    engine = NativeEngine.from_config(NativeConfig(dtype="float32", device="cpu"))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def vllm_engine() -> Iterator[Engine]:
    """The default model under vLLM, started once; skipped where vLLM is not there.

    It is vLLM's server, or vLLM in this process where that holds it. In the end closing it must
    leave no process of the server.
    """
    from inference import InferenceError, Request
    from inference.vllm.engine import VLLMEngine
    from tests.servers import VLLM, processes, require_vllm

    require_vllm()
    engine = VLLM.open()
    group = engine.server.pid if isinstance(engine, VLLMEngine) else None
    assert group is None or processes(group)
    yield engine
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.generate([Request(prompt="x")])
    deadline = time.monotonic() + 10
    while left := processes(group) if group else []:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus: int) -> None:
    """If the process then does not end, say where its threads stand and leave with the verdict."""

    def leave() -> None:
        time.sleep(STUCK)
        print(f"\nthe tests ended {STUCK} s ago, their process did not:", file=sys.__stderr__)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os._exit(exitstatus)

    threading.Thread(target=leave, name="stuck", daemon=True).start()
