"""`ragwright eval`: what it measures, what it refuses, and that it can go on and be done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from api.evaluation.plan import DEFAULT
from tests.api.conftest import Ragwright
from tests.house.source import ROOT

ECHO = """
name: echo
inputs:
  question: {type: string}
  passages: {type: list, default: []}
  n: {type: integer, default: 1}
nodes: {put: {use: set, with: {values: {text: "${inputs.question}"}}}}
edges: [{from: start, to: put}, {from: put, to: end}]
outputs: {answer: "${state.text}"}
"""
TIGHT = """
name: tight
inputs: {question: {type: string}}
resources: {engine: {use: native, model: default}}
nodes: {put: {use: generate, with: {prompt: "${inputs.question}", max_tokens: 2}}}
edges: [{from: start, to: put}, {from: put, to: end}]
outputs: {answer: "${state.text}"}
budget: {tokens: 60}
"""
NAIVE = "naive_rag:max_tokens=4,k=2"
READER = "reader:passages=@passages,max_tokens=4"
AUTO = (
    "auto_rag:turn_tokens=4,parametric_turn_tokens=4,recall_tokens=4,closing_tokens=4,"
    "demonstrations=0,max_rounds=2,passages_per_round=2"
)
HOPS = "synthetic-hops:questions=2"


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    file = tmp_path / "echo.yaml"
    file.write_text(ECHO, encoding="utf-8")
    return file


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Two questions, of which the first is its own answer."""
    rows = [
        {"id": 1, "question": "The Paris!", "answer": "paris", "hops": 1},
        {"id": 2, "question": "New York City", "answer": "York", "aliases": ["New York"]},
    ]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def evaluated(ragwright: Ragwright, *arguments: object) -> dict[str, Any]:
    status, out, errors = ragwright("eval", *arguments, "--json")
    assert status == 0, errors
    result: dict[str, Any] = json.loads(out)
    return result


def workflows(*names: object) -> list[object]:
    return [word for name in names for word in ("--workflow", name)]


def rows_of(folder: object) -> list[dict[str, Any]]:
    text = (Path(str(folder)) / "rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        row["usage"].pop("seconds")
    return rows


def test_answers_are_scored_with_aliases(ragwright: Ragwright, asked: Path, echo: Path) -> None:
    result = evaluated(ragwright, asked, *workflows(echo))
    (one,) = result["workflows"].values()
    assert (one["n"], one["failed"], result["paired"]) == (2, 0, [])
    assert one["exact_match"] == one["intervals"]["exact_match"]["mean"] == 0.5
    assert one["f1"] == pytest.approx((1 + 0.8) / 2)
    assert set(one["usage"]) >= {
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "model_calls",
    }
    assert one["supporting_recall"] is one["passages"] is one["rounds"] is one["forced"] is None
    assert [(row["hops"], row["n"], row["f1"]["mean"]) for row in result["hops"]] == [(1, 1, 1.0)]
    folder = Path(result["folder"])
    assert json.loads((folder / "result.json").read_text("utf-8")) == result
    assert {row["question"] for row in rows_of(folder)} == {"1", "2"}


def test_references_give_what_the_first_workflow_read(ragwright: Ragwright, tiny: str) -> None:
    names = (AUTO, "naive_rag:max_tokens=4,k=@count", READER, "closed_book:max_tokens=4")
    result = evaluated(ragwright, HOPS, "--model", tiny, "--limit", 3, *workflows(*names))
    rows = {(row["workflow"], row["question"]): row for row in rows_of(result["folder"])}
    assert len(rows) == 12 and not any(row["error"] for row in rows.values())
    for (name, question), row in rows.items():
        first = rows[AUTO, question]["citations"]
        queries = row["queries"]
        assert (queries is None) == (name != AUTO)
        assert queries is None or all(isinstance(one, str) for one in queries)
        if name == READER:
            assert [one["id"] for one in row["citations"]] == [one["id"] for one in first]
            assert [one["text"] for one in row["citations"]] == [one["text"] for one in first]
            assert not any({"round", "contains_answer"} & set(one) for one in row["citations"])
            assert row["recall"] == rows[AUTO, question]["recall"]
        elif name.startswith("naive_rag"):
            assert len(row["citations"]) == len({one["id"] for one in first})
    auto, naive, reader, closed = (
        {**one, **one["intervals"]} for one in result["workflows"].values()
    )
    assert closed["supporting_recall"] is None and closed["supporting_recall_equal"] is None
    assert auto["supporting_recall"]["n"] == naive["supporting_recall_equal"]["n"] == 3
    assert reader["supporting_recall"] == auto["supporting_recall"]
    assert auto["forced"] == auto["endings"]["closing"] == 3 and naive["forced"] is None
    assert auto["unforced_exact_match"]["mean"] == 0, "a forced answer is not the model's own"
    assert auto["rounds"]["mean"] > 1 and auto["malformed_turns"] > 0
    assert auto["cached_tokens"]["mean"] > 0, "later turns of a run reuse its own prefix"
    assert naive["cached_tokens"]["mean"] == 0, "and no run that of another"
    assert [one["against"] for one in result["paired"]] == [AUTO] * 3
    assert {row["hops"] for row in result["hops"]} == {1, 2, 3}


def test_questions_at_once_give_the_same_rows(ragwright: Ragwright, tiny: str) -> None:
    order = (HOPS, "--model", tiny, *workflows(NAIVE, READER))
    one = evaluated(ragwright, *order)
    many = evaluated(ragwright, *order, "--at-once", 5)

    def sorted_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
        rows = timeless(rows_of(result["folder"]))
        return sorted(rows, key=lambda row: (row["workflow"], row["question"]))

    assert sorted_rows(one) == sorted_rows(many)


def test_a_failing_question_is_a_row_and_stops_nothing(
    ragwright: Ragwright, tmp_path: Path, tiny: str
) -> None:
    tight = tmp_path / "tight.yaml"
    tight.write_text(TIGHT, encoding="utf-8")
    questions = tmp_path / "q.jsonl"
    rows = [{"id": n, "question": "x" * n, "answer": "y"} for n in (2, 400, 3)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    both = workflows("closed_book:max_tokens=2", tight)
    result = evaluated(ragwright, questions, "--model", tiny, *both)
    first, second = result["workflows"].values()
    assert (first["failed"], second["failed"]) == (0, 1)
    assert second["errors"] == {"budget_exhausted": 1}
    assert second["n"] == second["intervals"]["exact_match"]["n"] == 3, "it counts as wrong"
    assert result["paired"][0]["n"] == 2, "and is in no pair"
    status, out, _ = ragwright("eval", questions, "--model", tiny, *both)
    assert status == 0 and "failed (scored 0)" in out


def kept(folder: Path) -> int:
    file = folder / "rows.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def started(folder: Path, order: list[object]) -> subprocess.Popen[str]:
    """The command in a process of its own, once it has finished some rows."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ragwright", "eval", *map(str, order), "--out", str(folder)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 120
    while kept(folder) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return process


LONG = ["synthetic-hops:questions=40", *workflows("closed_book:max_tokens=40", "closed_book")]


def test_a_killed_run_goes_on_behind_its_rows(
    ragwright: Ragwright, tiny: str, tmp_path: Path
) -> None:
    folder, order = tmp_path / "out", [*LONG, "--limit", 60, "--model", tiny]
    process = started(folder, order)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = kept(folder)
    assert process.returncode == -signal.SIGKILL and 3 <= done < 120
    before = (folder / "rows.jsonl").read_bytes()
    with (folder / "rows.jsonl").open("ab") as file:
        file.write(b'{"workflow": "closed')  # a line that the kill cut short
    result = evaluated(ragwright, *order, "--out", folder, "--resume")
    after = (folder / "rows.jsonl").read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1]), "nothing was done again"
    whole = evaluated(ragwright, *order)
    assert timeless(rows_of(folder)) == timeless(rows_of(whole["folder"]))
    same = ("exact_match", "f1", "tokens")
    for ours, theirs in zip(result["workflows"].values(), whole["workflows"].values(), strict=True):
        assert [ours[name] for name in same] == [theirs[name] for name in same]


def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(tiny: str, tmp_path: Path) -> None:
    folder, order = tmp_path / "out", [*LONG, "--model", tiny]
    process = started(folder, order)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    done = rows_of(folder)
    assert 3 <= len(done) < 240 and not any(row["error"] for row in done), "no row by halves"
    assert f"{len(done)} of 240 rows are kept" in errors
    assert f"--out {folder} --resume" in errors and "Traceback" not in errors


def test_a_run_is_done_again_from_its_manifest(
    ragwright: Ragwright, tiny: str, tmp_path: Path
) -> None:
    evaluated(ragwright, HOPS, "--model", tiny, *workflows(NAIVE, READER), "--out", tmp_path / "a")
    manifest = tmp_path / "a" / "manifest.json"
    again = evaluated(ragwright, "--again", manifest, "--out", tmp_path / "b")
    assert again["again"] == {"folder": str(tmp_path / "a"), "rows": 12, "identical": 12}
    assert (tmp_path / "b" / "manifest.json").read_bytes() == manifest.read_bytes()
    assert timeless(rows_of(tmp_path / "a")) == timeless(rows_of(tmp_path / "b"))


@pytest.mark.default_model
def test_the_default_model_answers_the_same_again(ragwright: Ragwright, tmp_path: Path) -> None:
    order = ("sample", "--limit", 2, *workflows("closed_book:max_tokens=6"))
    evaluated(ragwright, *order, "--out", tmp_path / "a")
    again = evaluated(ragwright, "--again", tmp_path / "a" / "manifest.json")
    assert (again["again"]["rows"], again["again"]["identical"]) == (2, 2)
    assert any(row["answer"] for row in rows_of(again["folder"]))


def test_another_evaluation_is_not_gone_on_with(
    ragwright: Ragwright, asked: Path, echo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluated(ragwright, asked, *workflows(echo), "--out", out)
    order = ("eval", asked, *workflows(echo), "--out", out)
    status, _, errors = ragwright(*order)
    assert status == 2 and "exists already" in errors
    status, _, errors = ragwright(*order, "--resume", "--seed", 7)
    assert status == 2 and "order.seed was 0, is 7" in errors
    echo.write_text(ECHO.replace("name: echo", "name: other"), encoding="utf-8")
    status, _, errors = ragwright(*order, "--resume")
    assert status == 2 and "workflows.echo.echo.yaml was" in errors
    status, _, errors = ragwright("eval", "--again", out / "manifest.json")
    assert status == 2 and "workflows.echo" in errors
    echo.write_text(ECHO, encoding="utf-8")
    asked.write_text(asked.read_text("utf-8").replace("York City", "York"), encoding="utf-8")
    status, _, errors = ragwright(*order, "--resume")
    assert status == 2 and "suite.sha256 was" in errors
    assert len(rows_of(out)) == 2


BAD: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "SUITE"),
    "unknown suite": (["sampel"], "sample"),
    "unknown workflow": (["Q", "--workflow", "naive_rga"], "naive_rag"),
    "unknown input": (["Q", "--workflow", "naive_rag:kk=2"], "question, k, max_tokens"),
    "no value": (["Q", "--workflow", "naive_rag:k"], "INPUT=VALUE"),
    "wrong type": (["Q", "--workflow", "naive_rag:k=two"], "'two'"),
    "out of range": (["Q", "--workflow", "naive_rag:k=0"], "at least 1"),
    "given twice": (["Q", "--workflow", "naive_rag:k=1,k=2"], "twice"),
    "the question": (["Q", "--workflow", "naive_rag:question=x"], "leave it out"),
    "same workflow": (["Q", "--workflow", "ECHO", "--workflow", "ECHO"], "twice"),
    "missing input": (["Q", "--workflow", "reader"], "passages"),
    "reference first": (["Q", "--workflow", "naive_rag:k=@count"], "this is it"),
    "unknown reference": (["Q", "--workflow", "ECHO", "--workflow", "ECHO:n=@n"], "@count"),
    "wrong reference": (
        ["Q", "--workflow", "naive_rag", "--workflow", "ECHO:n=@passages"],
        "of type list",
    ),
    "nothing to refer to": (["Q", "--workflow", "ECHO", "--workflow", "ECHO:n=@count"], "'echo'"),
    "no documents": (["Q", "--workflow", "naive_rag"], "--docs"),
    "docs of a suite": (["sample", "--docs", "."], "documents of its own"),
    "unknown engine": (["Q", "--workflow", "closed_book", "--engine", "nativ"], "native"),
    "unknown model": (["Q", "--workflow", "closed_book", "--model", "defualt"], "default"),
    "no limit": (["Q", "--workflow", "ECHO", "--limit", "0"], "--limit"),
    "resume nowhere": (["Q", "--workflow", "ECHO", "--resume"], "--out"),
    "resume nothing": (["Q", "--workflow", "ECHO", "--resume", "--out", "no/where"], "no/where"),
    "no manifest": (["--again", "Q"], "manifest"),
    "again and more": (["Q", "--again", "Q"], "leave them out"),
    "unknown retriever": (["sample", "--retriever", "hybird"], "hybrid"),
    "ranking and workflows": (
        ["sample", "--retriever", "bm25", "--workflow", "ECHO"],
        "--workflow",
    ),
    "ranking nothing": (["Q", "--retriever", "bm25"], "--docs"),
    "cut-off alone": (["Q", "--workflow", "ECHO", "-k", "3"], "--retriever"),
    "no such folder": (["Q", "--workflow", "ECHO", "--report", "no/such/x.html"], "--report"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_orders_run_nothing(
    ragwright: Ragwright, asked: Path, echo: Path, home: Path, case: str
) -> None:
    arguments, named = BAD[case]
    before = set(home.glob("evals/results/*"))
    places = {"Q": str(asked), "ECHO": str(echo)}
    words = [a.replace("ECHO", places["ECHO"]) if a != "Q" else places["Q"] for a in arguments]
    status, out, errors = ragwright("eval", *words)
    assert status == 2, errors
    assert out == "" and errors.startswith("ragwright: ") and errors.count("\n") == 1, errors
    assert named in errors
    assert set(home.glob("evals/results/*")) == before


def test_retrievers_are_ranked_without_a_workflow(ragwright: Ragwright) -> None:
    names = ("--retriever", "hybrid", "--retriever", "bm25", "-k", 1, "-k", 4)
    result = evaluated(ragwright, HOPS, *names)
    for row in result["retrievers"]:
        assert row["n"] == 6 and row["recall@1"]["mean"] <= row["recall@4"]["mean"] <= 1
        assert {"ndcg@1", "ndcg@4", "mrr@4"} <= set(row)
        one_hop = row["ndcg@1"]["mean"]
        assert one_hop > 0, "the document of the first hop is found by its name"
    poisoned = evaluated(ragwright, f"{HOPS},poisoned=true", *names)
    assert all(row["recall@4"]["mean"] == 0 for row in poisoned["retrievers"])
    assert "hybrid" in ragwright("eval", HOPS, *names)[1]


def test_the_page_needs_nothing_else_and_escapes_every_text(
    ragwright: Ragwright, tmp_path: Path, echo: Path
) -> None:
    asked = tmp_path / "a <script>&.jsonl"
    asked.write_text('{"id": "x", "question": "Who?", "answer": "Ada", "hops": 1}', "utf-8")
    page = tmp_path / "page.html"
    result = evaluated(ragwright, asked, *workflows(echo, f"{echo}:n=2"), "--report", page)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "a &lt;script&gt;&amp;.jsonl" in text
    assert text.count("<svg") == text.count("</svg>") == 2, "exact match and F1 against tokens"
    assert "http" not in text and "src=" not in text and "href" not in text
    assert "echo:n=2" in text and result["n"] == 1
    _well_formed(text)


def _well_formed(text: str) -> None:
    from xml.etree import ElementTree

    ElementTree.fromstring(
        text.replace("<!DOCTYPE html>", "").replace('<meta charset="utf-8">', "")
    )


def test_without_workflows_auto_rag_is_compared_at_equal_passages() -> None:
    assert DEFAULT == ("auto_rag", "naive_rag:k=@count")
