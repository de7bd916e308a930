"""Queued jobs under SIGKILL and SIGSTOP: none is lost, none has two effects."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.fleet import Storm, site, storm

LEASE = 2.0


def test_no_job_is_lost_and_none_has_two_effects(tmp_path: Path) -> None:
    with site(tmp_path, lease=LEASE) as place:
        found = asyncio.run(storm(place, Storm()))
    print(found.seconds, found.reruns)
    assert found.lost == []
    assert found.doubled == []
    assert found.reruns > 0, "no kill hit a running job; the storm proves nothing"
