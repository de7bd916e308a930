"""ATLAS on the default model: do triggers fall on facts it cannot know, and what does a query find.

A prompt holds the document of one fact, and an answer tells that fact and another one which stands
in no prompt; both are invented. The answer is read, not written, so that every model is asked about
the same tokens. Tokens of the other fact's value are unknown, all other content tokens are not.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from agents.atlas import (
    Form,
    LrpConfig,
    MlagConfig,
    is_content,
    mlag,
    query_words,
    state_weights,
    whole_word,
)
from agents.atlas_calibration import find
from inference import Message, Request, SamplingParams
from inference.engine import NativeConfig
from inference.errors import UnknownName
from inference.native.engine import NativeEngine
from inference.suggest import nearest
from inference.training.hops import Base, Fact, build, words
from inference.watched import Watch, Watched
from retrieval.index import build_index
from retrieval.retriever import Retriever
from retrieval.table import retriever_config
from tests.bench.atlas_answers import answers as compared
from tests.bench.figures import Figure

DOUBT = "1 - probability"
CHANCE = "any content token"
LAST = "the last 6 content tokens"
WINDOW = 32
ROWS = ("unknown_facts", "triggers", "query", "answers")


def run(*, n: int = 60, only: Collection[str] = ()) -> list[Figure]:
    """The rows named in `only`, or all, over `n` answers of two facts.

    `unknown_facts`: area under the ROC curve with which a score tells unknown tokens from others.
    `triggers`: share of unknown ones among the tokens that trigger with the calibrated thresholds.
    `query`: how often a search for what LRP picks at the first unknown token finds its document.
    `answers`: how many are right with its searches and with as many at fixed distances, of the
    project's own questions (30, or `n` if that is less).
    """
    for name in only:
        if name not in ROWS:
            raise UnknownName(f"unknown row {name!r} of benchmark 'atlas'; {nearest(name, ROWS)}")
    config = NativeConfig(dtype="float32")
    found = []
    if not only or set(only) - {"answers"}:
        with closing(NativeEngine.from_config(config)) as engine:
            limits = find(engine.model, engine.weights_digest, "lookahead", WINDOW)
            when = MlagConfig(limits.max_probability, limits.threshold, window=WINDOW)
            found = measure(engine, build(0, "dev", 40), n, when)
    if not only or "answers" in only:
        found += compared(n, config, {})
    return [one for one in found if not only or one.name.partition(" ")[0] in only]


@dataclass(frozen=True, slots=True)
class Token:
    """A content token of an answer: whether its fact is unknown, and its scores."""

    unknown: bool
    probability: float
    mlag: dict[Form, float]


@dataclass(frozen=True, slots=True)
class Told:
    """An answer as the model read it: characters of the unknown value, and its document."""

    seen: Watched
    value: tuple[int, int]
    document: str

    def content(self) -> Iterator[tuple[int, bool]]:
        """Positions of content tokens that were read, and whether they are unknown."""
        at = 0
        for position, piece in enumerate(self.seen.pieces[self.seen.start : -1], self.seen.start):
            inside = at < self.value[1] and at + len(piece) > self.value[0]
            at += len(piece)
            if is_content(piece):
                yield position, inside


def measure(engine: NativeEngine, base: Base, n: int, when: MlagConfig) -> list[Figure]:
    """All figures over `n` answers; `when` are the thresholds of `triggers`."""
    told = list(answers(engine, base, n))
    tokens = [token for one in told for token in _tokens(one)]
    doubt = auc(tokens, [1 - one.probability for one in tokens])
    forms: tuple[Form, ...] = ("lookahead", "outgoing")
    found = []
    for form in forms:
        value = auc(tokens, [one.mlag[form] for one in tokens])
        name = f"unknown_facts {form}"
        found.append(Figure(name, value, "AUC", DOUBT, doubt, value / doubt, n=len(tokens)))
    found.append(_triggers(tokens, when))
    with TemporaryDirectory() as folder:
        return found + _queries(told, _searching(base, Path(folder)))


def answers(engine: NativeEngine, base: Base, n: int) -> Iterator[Told]:
    """`n` answers about two facts, of which the prompt holds one."""
    draw = random.Random(0)
    weights = list(state_weights(engine.layers, LrpConfig().layer_temperature))
    for _ in range(n):
        known = draw.choice(base.facts)
        unknown = draw.choice([one for one in base.facts if one.head != known.head])
        order = [known, unknown]
        draw.shuffle(order)
        sentences = [sentence(one) for one in order]
        text = " ".join(sentences)
        asked = f"Tell what you know about {known.head} and about {unknown.head}."
        prompt = f"{base.documents[known.document]}\n{asked}"
        seen = read(engine, prompt, text, weights)
        own = sentence(unknown)
        begin = text.index(own) + own.rindex(unknown.tail)
        yield Told(seen, (begin, begin + len(unknown.tail)), unknown.document)


def sentence(fact: Fact) -> str:
    """A fact as a sentence of an answer."""
    wording = words()["relations"][fact.relation]["found"][0]
    plain: str = wording.format(x=fact.head, y=fact.tail)
    return f"{plain[0].upper()}{plain[1:]}."


def read(engine: NativeEngine, prompt: str, text: str, weights: Sequence[float]) -> Watched:
    """What a generation of `text` would have shown."""
    ids = engine.encode(Request(prompt=text))
    request = Request(messages=[Message("user", prompt)], sampling=SamplingParams(max_tokens=1))
    watch = Watch(engine, request, (), weights)
    [output] = engine.generate([replace(watch.request, token_ids=[*watch.ids, *ids])])
    output.raise_if_failed()
    [score] = engine.score(Request(token_ids=watch.ids), [ids])
    seen = watch.result(replace(output, token_ids=tuple(ids)))
    return replace(seen, probabilities=np.exp(np.array(score.logprobs)))


def auc(tokens: Sequence[Token], scores: Sequence[float]) -> float:
    """Chance that an unknown token has a higher score than another; half of equal ones count."""
    unknown = np.array([one.unknown for one in tokens])
    values = np.array(scores)
    above, below = values[unknown][:, None], values[~unknown][None]
    return float(((above > below) + 0.5 * (above == below)).mean())


def _tokens(told: Told) -> list[Token]:
    seen = told.seen
    return [
        Token(
            unknown,
            float(seen.probabilities[position - seen.start]),
            {
                "lookahead": mlag(seen, position, MlagConfig(1.1, 0.0, "lookahead", WINDOW)),
                "outgoing": mlag(seen, position, MlagConfig(1.1, 0.0, "outgoing", WINDOW)),
            },
        )
        for position, unknown in told.content()
    ]


def _triggers(tokens: Sequence[Token], when: MlagConfig) -> Figure:
    fired = [
        one
        for one in tokens
        if one.probability < when.max_probability and one.mlag["lookahead"] > when.threshold
    ]
    share = sum(one.unknown for one in fired) / len(fired) if fired else None
    chance = sum(one.unknown for one in tokens) / len(tokens)
    ratio = None if share is None else share / chance
    return Figure("triggers unknown", share, "share", CHANCE, chance, ratio, n=len(fired))


def _searching(base: Base, folder: Path) -> Retriever:
    docs = folder / "docs"
    docs.mkdir()
    for name, text in base.documents.items():
        (docs / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    build_index(docs, folder / "index")
    return retriever_config("hybrid").open(folder / "index")


def _queries(told: Sequence[Told], retriever: Retriever) -> list[Figure]:
    """Documents found at rank 1 by what LRP picks, by attention alone, and by the last words."""
    ways: dict[str, list[bool]] = {"lrp": [], "attention_alone": [], "last": []}
    for one in told:
        first = next((position for position, unknown in one.content() if unknown), None)
        if first is None:  # the value is a number, which is no content token
            continue
        picked = {
            "lrp": query_words(one.seen, first, LrpConfig()),
            "attention_alone": query_words(one.seen, first, LrpConfig(1.0, 0.0)),
            "last": _last(one.seen, first, LrpConfig().query_tokens),
        }
        for way, chosen in picked.items():
            ways[way].append(bool(chosen) and _first(retriever, chosen) == one.document)
    n = len(ways["last"])
    if not n:
        return []
    last = float(np.mean(ways.pop("last")))
    return [
        Figure(f"query {way}", share, "hit@1", LAST, last, share / last if last else None, n=n)
        for way, found in ways.items()
        for share in [float(np.mean(found))]
    ]


def _first(retriever: Retriever, chosen: Sequence[str]) -> str:
    [[hit]] = retriever.search([" ".join(chosen)], 1)
    return Path(hit.passage.document_id).stem


def _last(seen: Watched, end: int, count: int) -> list[str]:
    content = [at for at in range(1, end) if is_content(seen.pieces[at])][-count:]
    return list(dict.fromkeys(whole_word(seen.pieces, at, end) for at in content))
