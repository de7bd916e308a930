"""The benchmark of ATLAS: tokens are labelled as they should be, and figures on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agents.atlas import MlagConfig
from inference.engine import NativeConfig
from inference.errors import UnknownName
from inference.native.engine import NativeEngine
from inference.training.hops import build
from tests.bench import atlas
from tests.bench.atlas import Token, answers, auc, measure, sentence
from tests.bench.atlas_answers import STRIDES
from tests.bench.atlas_answers import answers as compared
from tests.inference.tiny import checkpoint

BASE = build(0, "dev", 4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeEngine]:
    model = str(checkpoint(tmp_path_factory.mktemp("model"), context=1024))
    engine = NativeEngine.from_config(NativeConfig(model=model, dtype="float32"))
    yield engine
    engine.close()


def test_unknown_tokens_are_those_of_the_fact_that_no_prompt_holds(engine: NativeEngine) -> None:
    by_document = {one.document: one for one in BASE.facts}
    spelt = 0
    for told in answers(engine, BASE, 12):
        fact = by_document[told.document]
        text = "".join(told.seen.pieces[told.seen.start :])
        prompt = "".join(told.seen.pieces[: told.seen.start])
        assert sentence(fact) in text and fact.tail == text[slice(*told.value)]
        assert BASE.documents[told.document] not in prompt and fact.head in prompt
        unknown = [told.seen.pieces[at].strip(" .") for at, inside in told.content() if inside]
        spelt += bool(unknown)
        assert all(piece in fact.tail for piece in unknown)
    assert spelt > 4


def test_every_row_gives_its_figures(engine: NativeEngine) -> None:
    found = {one.name: one for one in measure(engine, BASE, 6, MlagConfig(1.1, 0.0))}
    assert list(found) == [
        *("unknown_facts lookahead", "unknown_facts outgoing", "triggers unknown"),
        *("query lrp", "query attention_alone"),
    ]
    for one in found.values():
        assert one.value is not None and 0 <= one.value <= 1
        assert one.peer_value is not None and 0 <= one.peer_value <= 1 and one.n > 0


def test_answers_are_compared_at_as_many_searches(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = str(checkpoint(tmp_path_factory.mktemp("model"), endless=True, context=512))
    eager = {"max_probability": 1.0, "threshold": 0.0, "window": 8, "k": 1, "most": 1}
    found = compared(2, NativeConfig(model=model, dtype="float32"), eager)
    assert [one.name.partition(" ")[2] for one in found] == [
        f"stride_{stride} {what}" for stride in STRIDES for what in ("right", "searches")
    ]
    for one in found:
        assert one.n == 2 and one.peer_value is not None
        assert one.unit == "share" or (one.value, one.peer_value) == (1, 1)


def test_the_area_counts_pairs() -> None:
    tokens = [Token(unknown, 0.5, {}) for unknown in (True, False, True, False)]
    assert auc(tokens, [3, 1, 4, 2]) == 1
    assert auc(tokens, [1, 3, 2, 4]) == 0
    assert auc(tokens, [1, 1, 1, 1]) == 0.5
    assert auc(tokens, [2, 1, 2, 2]) == 0.75


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'query'"):
        atlas.run(only=["querry"])
