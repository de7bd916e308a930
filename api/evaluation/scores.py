"""Scores of answers: normalisation, exact match and F1 as SQuAD and HotpotQA define them.

Rajpurkar et al., arXiv 1606.05250, section 6.1; Yang et al., arXiv 1809.09600, section 5.2. The
recall of supporting passages is counted over documents or passages, whichever a question names.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
VERDICTS = frozenset({"yes", "no", "noanswer"})
"""Answers that HotpotQA's F1 counts only when they are alone on both sides."""


def normalise(text: str) -> str:
    """Lower case, without punctuation (deleted), then without articles, single blanks."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1.0 if the answer is one of the golds after normalisation, else 0.0."""
    return float(normalise(answer) in {normalise(gold) for gold in golds})


def f1(answer: str, golds: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall over words, among the golds.

    A gold or an answer without any word left after normalisation scores its exact match, as in
    SQuAD 2.0; `yes`, `no` and `noanswer` share words with nothing but themselves, as in HotpotQA.
    """
    return max((_f1(normalise(answer), normalise(gold)) for gold in golds), default=0.0)


def _f1(answer: str, gold: str) -> float:
    said, meant = answer.split(), gold.split()
    if not said or not meant or answer in VERDICTS or gold in VERDICTS:
        return float(said == meant)
    shared = sum((Counter(said) & Counter(meant)).values())
    return 2 * shared / (len(said) + len(meant))


def distinct(citations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Citations in their order, each passage once; one without an id is told by its text."""
    seen: dict[Any, Mapping[str, Any]] = {}
    for one in citations:
        seen.setdefault(one.get("id") or (one.get("title"), one.get("text")), one)
    return list(seen.values())


def supporting_recall(
    supporting: Collection[str], citations: Sequence[Mapping[str, Any]], most: int | None = None
) -> float | None:
    """Share of the supporting documents (or passage ids) among the first `most` passages read.

    None where the question names no supporting document.
    """
    wanted = set(supporting)
    if not wanted:
        return None
    read = distinct(citations)[:most]
    found = {one.get(key) for one in read for key in ("id", "document_id")}
    return len(wanted & found) / len(wanted)
