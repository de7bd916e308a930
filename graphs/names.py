"""Finding entities by what people call them: exact, normalised, by words, by spelling."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphs.facts import label
from retrieval.bm25 import STOPWORDS, Bm25

LONGEST_MENTION = 12
"""Words of the longest name that is looked for inside a text."""
WORDS_SCORE = 0.5
"""Highest score of an entity that only shares words with what was asked."""
SPELLING = 0.5
"""Least similarity of two spellings: Dice's coefficient of their sets of three letters."""
MENTION_SPELLING = 0.7
"""The same inside a text, where every stretch of words is a guess."""

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Match:
    """An entity that a mention may mean; `how` is exact, name, words or spelling, score in (0, 1].

    `exact`: the mention is the identity. `name`: it is a name but for case, underscores and
    punctuation. `words`: BM25 over names, as a part of the best one's. `spelling`: alike letters.
    """

    entity: str
    label: str
    mention: str
    how: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def normal(text: str) -> str:
    """Words of `text` in lower case (NFKC), one space between them."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


class Names:
    """The names of all entities of a graph, looked up in several ways."""

    def __init__(
        self, entities: Sequence[str], names: Mapping[str, Sequence[str]], words: Bm25
    ) -> None:
        self.entities = entities
        self.rows = {entity: row for row, entity in enumerate(entities)}
        self._names, self._words = names, words
        self._normal: dict[str, list[int]] = defaultdict(list)
        for row, entity in enumerate(entities):
            for form in {normal(name) for name in self.called(entity)} - {""}:
                self._normal[form].append(row)
        self._longest = max((form.count(" ") + 1 for form in self._normal), default=0)
        self._grams: dict[str, list[str]] | None = None

    def called(self, entity: str) -> list[str]:
        """Everything an entity is called, its first name first."""
        return [*self._names.get(entity, ()), label(entity), entity]

    def find(self, mention: str, limit: int = 5) -> list[Match]:
        """Entities that `mention` may mean, best first; only the surest kind that has any.

        The kinds are tried in the order exact, name, then words and spelling together.
        """
        if mention in self.rows:
            return [self._match(self.rows[mention], mention, "exact", 1.0)]
        if rows := self._normal.get(normal(mention)):
            return [self._match(row, mention, "name", 1.0) for row in rows[:limit]]
        found: dict[int, Match] = {}
        for match in (*self._by_words(mention, limit), *self._by_spelling(mention, SPELLING)):
            row = self.rows[match.entity]
            if row not in found or found[row].score < match.score:
                found[row] = match
        return sorted(found.values(), key=lambda m: (-m.score, self.rows[m.entity]))[:limit]

    def link(self, text: str, limit: int = 5) -> list[Match]:
        """Entities that `text` mentions, in the order of mention, longest names first taken.

        Where it mentions none by name, the entities whose names are spelled alike or share words.
        """
        found = self._mentioned(text)
        if not found:
            found = self._misspelled(text) or self._by_words(text, limit)
        return list({match.entity: match for match in found}.values())[:limit]

    def _mentioned(self, text: str) -> list[Match]:
        words = normal(text).split()
        found: list[Match] = []
        start = 0
        while start < len(words):
            for size in range(min(self._longest, LONGEST_MENTION, len(words) - start), 0, -1):
                mention = words[start : start + size]
                rows = self._normal.get(" ".join(mention))
                if rows and not all(len(word) < 2 or word in STOPWORDS for word in mention):
                    found += [self._match(row, " ".join(mention), "name", 1.0) for row in rows]
                    start += size
                    break
            else:
                start += 1
        return found

    def _misspelled(self, text: str) -> list[Match]:
        words = normal(text).split()[:64]
        found: list[Match] = []
        for size in (4, 3, 2, 1):
            for start in range(len(words) - size + 1):
                mention = " ".join(words[start : start + size])
                if len(mention) >= 5 and mention not in STOPWORDS:
                    found += self._by_spelling(mention, MENTION_SPELLING)
        return sorted(found, key=lambda match: (-match.score, self.rows[match.entity]))

    def _by_words(self, mention: str, limit: int) -> list[Match]:
        (ranked,) = self._words.rank([mention], limit, None, matching=True)
        best = ranked.scores[0] if len(ranked.scores) else 1.0
        return [
            self._match(int(row), mention, "words", round(WORDS_SCORE * float(score / best), 4))
            for row, score in zip(ranked.rows, ranked.scores, strict=True)
        ]

    def _by_spelling(self, mention: str, least: float) -> list[Match]:
        form = normal(mention)
        grams = _grams(form)
        if not grams:
            return []
        if self._grams is None:
            index: dict[str, list[str]] = defaultdict(list)
            for known in self._normal:
                for gram in _grams(known):
                    index[gram].append(known)
            self._grams = index
        shared = Counter(known for gram in grams for known in self._grams.get(gram, ()))
        found = []
        for known, count in shared.items():
            score = round(2 * count / (len(grams) + len(_grams(known))), 4)
            if score >= least:
                found += [
                    self._match(row, mention, "spelling", score) for row in self._normal[known]
                ]
        return found

    def _match(self, row: int, mention: str, how: str, score: float) -> Match:
        entity = self.entities[row]
        return Match(entity, self.called(entity)[0], mention, how, score)


def _grams(form: str) -> frozenset[str]:
    """The stretches of three letters of a normalised name, its ends marked by spaces."""
    padded = f"  {form} "
    return frozenset(padded[at : at + 3] for at in range(len(padded) - 2)) if form else frozenset()
