"""Scores against implementations of another make: SQuAD's rules word by word, and trec_eval."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from api.evaluation.intervals import bootstrap, paired
from api.evaluation.ranking import ndcg_at, recall_at, reciprocal_rank
from api.evaluation.scores import exact_match, f1, normalise, supporting_recall

WORDS = ["the", "The", "a", "an", "cat", "Cat.", "theatre", "U.S.", "1,412", "m-", "no", "yes", "!"]
texts = st.one_of(st.lists(st.sampled_from(WORDS)).map(" ".join), st.text(max_size=20))
ids = st.integers(0, 30).map(str)


def plain_words(text: str) -> list[str]:
    """SQuAD's normalisation as a loop: an article is a run of word characters of its own."""
    kept = [one for one in text.lower() if one not in string.punctuation]
    found, run = [], ""
    for letter in [*kept, " "]:
        if letter.isalnum() or letter == "_":
            run += letter
        else:
            found.append(" " if run in ("a", "an", "the") else run)
            found.append(letter)
            run = ""
    return "".join(found).split()


def plain_f1(answer: str, gold: str) -> float:
    """HotpotQA's F1 by precision and recall, words struck off one by one."""
    said, meant = plain_words(answer), plain_words(gold)
    if not said or not meant:
        return 1.0 if said == meant else 0.0
    for verdict in (["yes"], ["no"], ["noanswer"]):
        if (said == verdict or meant == verdict) and said != meant:
            return 0.0
    left, shared = list(meant), 0
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(meant)
    return 2 * precision * recall / (precision + recall)


@given(texts)
def test_normalisation_is_that_of_squad(text: str) -> None:
    assert normalise(text).split() == plain_words(text)
    assert normalise(normalise(text)).split() == plain_words(" ".join(plain_words(text)))


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_answers_are_scored_against_the_best_gold(answer: str, golds: list[str]) -> None:
    words = [plain_words(gold) for gold in golds]
    assert exact_match(answer, golds) == float(plain_words(answer) in words)
    assert math.isclose(f1(answer, golds), max(plain_f1(answer, gold) for gold in golds))
    assert f1(answer, golds) >= exact_match(answer, golds)


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "overlap"),
    [
        ("The  Oneida Limited.", ["Oneida Limited"], 1.0, 1.0),
        ("Oneida", ["Oneida Limited"], 0.0, 2 / 3),
        ("no, never", ["no"], 0.0, 0.0),
        ("1412 m", ["1,412 metres", "1412 m"], 1.0, 1.0),
        ("", ["x"], 0.0, 0.0),
    ],
)
def test_known_scores(answer: str, golds: list[str], exact: float, overlap: float) -> None:
    assert exact_match(answer, golds) == exact
    assert math.isclose(f1(answer, golds), overlap)


def test_recall_of_supporting_documents_counts_documents_once_and_in_order() -> None:
    read = [
        {"id": "a#0", "document_id": "a"},
        {"id": "a#0", "document_id": "a"},
        {"id": "b#1", "document_id": "b"},
    ]
    assert supporting_recall(["a", "b"], read) == 1.0
    assert supporting_recall(["a", "b"], read, 1) == 0.5
    assert supporting_recall(["b", "b"], read, 2) == 1.0, "a passage shown twice is one passage"
    assert supporting_recall(["b#0", "b#1"], read) == 0.5, "passages may be named too"
    assert supporting_recall(["c"], []) == 0.0
    assert supporting_recall([], read) is None


@given(st.lists(ids, max_size=25, unique=True), st.sets(ids, min_size=1, max_size=8))
def test_rankings_score_as_in_trec_eval(ranked: list[str], relevant: set[str]) -> None:
    judged = {"q": dict.fromkeys(relevant, 1)}
    run = {"q": {name: float(len(ranked) - at) for at, name in enumerate(ranked)}}
    wanted = {"recall_5,10", "ndcg_cut_5,10", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(run).get("q", {})
    ours = {"recip_rank": reciprocal_rank(ranked, relevant)}
    for k in (5, 10):
        ours[f"recall_{k}"] = recall_at(ranked, relevant, k)
        ours[f"ndcg_cut_{k}"] = ndcg_at(ranked, relevant, k)
    assert ours == pytest.approx({name: theirs.get(name, 0.0) for name in ours})


def drawn(draw: random.Random, n: int) -> list[float]:
    """Scores of 0 and 1 with a mean of 0.3."""
    return [float(draw.random() < 0.3) for _ in range(n)]


def test_intervals_cover_a_known_mean() -> None:
    draw = random.Random(1)
    covered = 0
    for seed in range(200):
        found = bootstrap(drawn(draw, 60), seed)
        assert found is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(0, 99))
def test_intervals_hold_their_mean_and_come_from_the_seed(values: list[float], seed: int) -> None:
    found = bootstrap(values, seed)
    assert found is not None and found == bootstrap(values, seed)
    assert found.n == len(values) and found.mean == pytest.approx(float(np.mean(values)))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_without_a_value_there_is_no_interval() -> None:
    assert bootstrap([], 0) is None and paired([], [], 0) is None


def test_a_paired_difference_sees_what_single_means_do_not() -> None:
    draw = random.Random(2)
    first: Sequence[float] = [draw.gauss(0, 10) for _ in range(80)]
    other = [value + 0.5 + draw.gauss(0, 0.1) for value in first]
    difference, alone = paired(first, other, 0), bootstrap(other, 0)
    assert difference is not None and alone is not None
    assert 0.45 < difference.low < difference.mean < difference.high < 0.55
    assert alone.high - alone.low > 1
    backwards = paired(other, first, 0)
    assert backwards is not None and backwards.mean == pytest.approx(-difference.mean)
