"""Scores for the card of an adapter: a tiny model's, over the real questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.adapters import shipped
from inference.training.auto_rag import main as train
from tests.bench.adapters import main
from tests.house.source import ROOT
from tests.inference.tiny import checkpoint


def test_scores_with_and_without_an_adapter_go_into_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    model = str(checkpoint(tmp_path / "model", context=8192))
    prompts = str(ROOT / "agents" / "prompts" / "reader.yaml")
    given = ["--prompts", prompts, "--model", model, "--out", str(tmp_path / "reader-default")]
    train(["reader", *given, "--dtype", "float32", "--examples", "8", "--rank", "2"])
    given = ["--adapters", str(tmp_path), "--model", model, "--limit", "3"]
    main(["naive_rag", *given, "--write"])
    card = json.loads((tmp_path / "reader-default" / "card.json").read_text(encoding="utf-8"))
    assert card["recipe"] == "reader"
    found = card["scores"]
    assert json.loads(capsys.readouterr().out) == found
    assert (found["suite"], found["n"]) == ("synthetic-hops:split=dev", 3)
    for kind in ("trained", "untrained"):
        assert found[kind]["failed"] == 0
        rows = [found[kind][f"{hops} hops"] for hops in (1, 2, 3)]
        assert all(row["n"] == 1 and row["exact_match"]["n"] == 1 for row in rows)
        assert all(0 <= row["supporting_recall"]["mean"] <= 1 for row in rows)
