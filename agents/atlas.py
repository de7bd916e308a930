"""ATLAS: whether to retrieve at a token of a generation (MLAG), and for what (LRP).

Source: Srinivas et al., arXiv 2504.01281: MLAG with its gate and the adaptive scale, and the local
relevance that picks the tokens of a query. There is no official code; the test-time parts alone
are here.

Repairs, by their names in the options:
- `lookahead`: the paper sums attention that t_i received from tokens before it, which a causal
  model makes exactly zero. Here it is received from the rows i+1 to i+w of a segment that is
  generated ahead, and on a trigger the generation goes back to i.
- `outgoing`: in its place, what row i attends to; consecutive layers differ by the L1 distance of
  their rows, averaged over heads, and D takes the mass of each head off position 0 and off i.
- theta is never stated: a quantile on held-out text, per model (`agents.atlas_calibration`).
- The terms of LRP have different ranges: both are scaled to [0, 1] over the tokens before mixing.

Deviations:
- Position 0 draws most attention whatever it holds: it is left out before attention is normalised
  (`outgoing`: the rest of the row is scaled to sum 1), and never picked for a query.
- Received attention is the mean over the rows that look ahead, normalised by its maximum over the
  positions 1 to i; rows after the last token do not exist, so a late token has fewer of them.
- C is the part of the context that this generation fills and C_max `memory_limit` of all of it,
  in place of device memory: the same run then triggers alike on every machine.
- Only content tokens (s = 1) become words of a query, and they are completed to whole words.

Not verified: the list of stopwords, whether s_i looks at tokens or words, and over which rows the
entropy of a head is taken (here: those of the segment, whole).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agents.prompts import fill, load_prompts
from agents.watching import Place
from inference import Message
from inference.watched import Watched

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Form = Literal["lookahead", "outgoing"]

STOPWORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "during",
        "each",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "here",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "might",
        "more",
        "most",
        "must",
        "my",
        "no",
        "nor",
        "not",
        "of",
        "on",
        "or",
        "other",
        "our",
        "over",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "under",
        "until",
        "up",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "why",
        "will",
        "with",
        "would",
        "yes",
        "you",
        "your",
    ]
)
SENTENCE_END = re.compile(r"[.!?\n]")


@dataclass(frozen=True, slots=True)
class MlagConfig:
    """Constants of MLAG: `form`, `window` (w, in tokens), and those of its scale alpha.

    `scale` is alpha_0 and `scale_decay` its lambda; `memory_limit` is C_max as a part of the
    context. A token is considered under the probability `max_probability` (tau_p) and triggers
    over `threshold` (theta).
    """

    max_probability: float
    threshold: float
    form: Form = "lookahead"
    window: int = 32
    scale: float = 0.8
    scale_decay: float = 4.0
    memory_limit: float = 0.85


@dataclass(frozen=True, slots=True)
class LrpConfig:
    """Constants of LRP: weights of its terms, temperature of the layer mix, tokens picked."""

    attention_weight: float = 0.7
    representation_weight: float = 0.3
    layer_temperature: float = 2.0
    query_tokens: int = 6


def is_content(piece: str) -> bool:
    """s_i: False for stopwords, numbers, punctuation, control tokens and pieces without letters."""
    word = piece.strip().lower()
    return any(one.isalpha() for one in word) and word not in STOPWORDS


def scale(memory: float, config: MlagConfig) -> float:
    """alpha = alpha_0 exp(-lambda C / C_max); `memory` is C as a part of the context."""
    share = min(memory / config.memory_limit, 1.0)
    return config.scale * float(np.exp(-config.scale_decay * share))


def received(attention: Array, start: int, position: int, window: int) -> Array:
    """Mean attention [layers, heads, position + 1] that positions get from rows i+1 to i+w.

    `attention` [layers, heads, rows, tokens] begins with the row of `start`. Zero where there is
    no later row.
    """
    first = position + 1 - start
    rows = attention[:, :, first : first + window, : position + 1]
    if rows.shape[2] == 0:
        return np.zeros((*attention.shape[:2], position + 1))
    return np.asarray(rows.mean(axis=2), np.float64)


def head_weights(attention: Array) -> Array:
    """phi [heads]: entropy (nats) of the last layer's heads, mean over all rows, summing to 1."""
    last = np.asarray(attention[-1], np.float64)
    entropy = -(last * np.log(np.where(last > 0, last, 1.0))).sum(axis=-1).mean(axis=-1)
    total = entropy.sum()
    return np.asarray(entropy / total if total > 0 else np.full(len(entropy), 1 / len(entropy)))


def layer_gradient(attention: Array, start: int, position: int, config: MlagConfig) -> float:
    """G_i = sum over j of j/(L-1) |A_{j+1,i} - A_{j,i}|, layers counted from 1."""
    layers = len(attention)
    steps = np.arange(1, layers) / max(layers - 1, 1)
    if config.form == "outgoing":
        row = np.asarray(attention[:, :, position - start, 1 : position + 1], np.float64)
        mean = row.mean(axis=1)
        mean = mean / np.maximum(mean.sum(axis=-1, keepdims=True), 1e-30)
        return float(steps @ np.abs(np.diff(mean, axis=0)).sum(axis=-1))
    summed = received(attention, start, position, config.window).sum(axis=1)[:, 1:]
    share = summed[:, -1] / np.maximum(summed.max(axis=-1), 1e-30)
    return float(steps @ np.abs(np.diff(share)))


def uncertainty(
    attention: Array, start: int, position: int, probability: float, config: MlagConfig
) -> float:
    """D_i = (1 - p_i) times the attention to t_i in the last layer, heads weighed by phi."""
    if config.form == "outgoing":
        mass = attention[-1, :, position - start, 1:position].sum(axis=-1)
    else:
        mass = received(attention, start, position, config.window)[-1, :, position]
    return (1 - probability) * float(head_weights(attention) @ mass)


def mlag(seen: Watched, position: int, config: MlagConfig) -> float:
    """alpha G_i D_i s_i of a produced token; 0 where its row, or every later one, is missing."""
    at = position - seen.start
    rows = seen.attention.shape[2]
    if not is_content(seen.pieces[position]) or at >= rows or position < 1:
        return 0.0
    attention, probability = np.asarray(seen.attention, np.float64), float(seen.probabilities[at])
    gradient = layer_gradient(attention, seen.start, position, config)
    doubt = uncertainty(attention, seen.start, position, probability, config)
    return scale(position / seen.context_length, config) * gradient * doubt


def first_trigger(seen: Watched, behind: int, end: int, config: MlagConfig) -> Place | None:
    """The first produced token at `behind` or later, before `end`, that asks for retrieval."""
    for position in range(max(seen.start, behind), min(end, len(seen.ids))):
        probability = float(seen.probabilities[position - seen.start])
        if probability >= config.max_probability or not is_content(seen.pieces[position]):
            continue
        value = mlag(seen, position, config)
        if value > config.threshold:
            return Place(position, probability, value)
    return None


def settled(seen: Watched) -> int:
    """Position behind the last token that can be kept: the last sentence end of a segment.

    At most a quarter of a segment without one is generated again, so that every token that is
    judged has rows behind it. A generation that ended by itself is kept whole.
    """
    if seen.finish_reason.value != "length":
        return len(seen.ids)
    produced = len(seen.produced)
    for at in range(len(seen.ids) - 2, seen.start - 1, -1):
        if SENTENCE_END.search(seen.pieces[at]):
            return at + 1
    return seen.start + max(1, produced - produced // 4)


def layer_weights(layers: int) -> Array:
    """psi [layers], layers counted from 1, as printed: it falls to 0 at L/3 and at L."""
    third = layers / 3
    at = np.arange(1, layers + 1, dtype=np.float64)
    low, middle = 0.2 * at / third, 0.5 * (at - third) / third
    high = 0.3 * (layers - at) / third
    return np.where(at < third, low, np.where(at <= 2 * third, middle, high))


def state_weights(layers: int, temperature: float) -> Array:
    """delta = softmax(l / tau) [layers + 1] over the embedding (l = 0) and the layers."""
    at = np.arange(layers + 1) / temperature
    powers = np.exp(at - at.max())
    return np.asarray(powers / powers.sum())


def relevance(seen: Watched, position: int, config: LrpConfig) -> Array:
    """rel(j) [position] of the tokens before a produced one, by its row; position 0 is 0."""
    row = np.asarray(seen.attention[:, :, position - seen.start, :position], np.float64)
    attention = layer_weights(len(row)) @ row.mean(axis=1)
    states = np.asarray(seen.states, np.float64)
    mine = states[position]
    norms = np.linalg.norm(states[:position], axis=1) * np.linalg.norm(mine)
    cosine = states[:position] @ mine / np.maximum(norms, 1e-30)
    mixed = np.zeros(position)
    mixed[1:] = config.attention_weight * _stretched(attention[1:])
    mixed[1:] += config.representation_weight * _stretched(cosine[1:])
    return mixed


def query_words(seen: Watched, position: int, config: LrpConfig) -> list[str]:
    """Words of the most relevant content tokens before `position`, in text order, each once."""
    rel = relevance(seen, position, config)
    allowed = [at for at in range(1, position) if is_content(seen.pieces[at])]
    best = sorted(sorted(allowed, key=lambda at: (-rel[at], at))[: config.query_tokens])
    return list(dict.fromkeys(whole_word(seen.pieces, at, position) for at in best))


def whole_word(pieces: Sequence[str], at: int, end: int) -> str:
    """The word that a token belongs to, of the tokens before `end`."""
    first, behind = at, at + 1
    while first > 0 and pieces[first][:1].isalnum() and pieces[first - 1][-1:].isalnum():
        first -= 1
    while behind < end and pieces[behind][:1].isalnum() and pieces[behind - 1][-1:].isalnum():
        behind += 1
    return "".join(pieces[first:behind]).strip()


def grounded(
    asked: Sequence[Message] | str, passages: Sequence[Mapping[str, Any]]
) -> list[Message] | str:
    """The dialogue with passages before what its last message says, or before a plain prompt."""
    if not passages:
        return asked if isinstance(asked, str) else list(asked)
    prompts = load_prompts("atlas")
    shown = "\n".join(
        fill(prompts["passage"], title=one["title"], text=one["text"]) for one in passages
    )
    if isinstance(asked, str):
        return fill(prompts["passages"], passages=shown, question=asked)
    *before, last = asked
    content = fill(prompts["passages"], passages=shown, question=last.content)
    return [*before, Message(last.role, content)]


def query_prompt(words: Sequence[str]) -> list[Message]:
    """The dialogue that turns selected words into a search query."""
    return [Message("user", fill(load_prompts("atlas")["query"], words=" ".join(words)))]


def _stretched(values: Array) -> Array:
    """Values scaled to [0, 1]; all 0 where they are equal."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return np.asarray((values - low) / (high - low) if high > low else np.zeros_like(values))
