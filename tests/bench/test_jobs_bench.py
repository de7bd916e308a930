"""The benchmark of jobs: its figures are those of both sides, measured on real servers."""

from __future__ import annotations

import pytest

from inference.errors import UnknownName
from tests.bench import jobs
from tests.chaos.fleet import Storm


def test_a_row_gives_its_figure_and_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "QUEUED", 64)
    [figure] = jobs.run(only=["submit_rate"])
    assert (figure.name, figure.unit, figure.peer) == ("submit_rate", "jobs/s", jobs.PEER)
    assert figure.value is not None and figure.peer_value is not None
    assert figure.ratio == pytest.approx(figure.value / figure.peer_value)


def test_lost_jobs_of_the_peer_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STORM", Storm(jobs=6, worker_kills=1, server_kills=0, workers=1))
    monkeypatch.setattr(jobs, "LATE_SECONDS", 0.1)
    found = {figure.name: figure for figure in jobs.run(only=["storm"])}
    assert {"lost_jobs", "duplicate_results", "storm_reruns"} <= found.keys()
    assert (found["lost_jobs"].value, found["duplicate_results"].value) == (0, 0)
    assert found["lost_jobs"].peer_value is not None


def test_an_unknown_row_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'takeover'"):
        jobs.run(only=["takeovr"])
