"""A fact: head, relation and tail, and where it was read."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from graphs.errors import GraphInputError

LONGEST = 4_000
"""Longest name of an entity or relation, in characters."""
RDF_TYPE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type"

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_IRI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")


@dataclass(frozen=True, slots=True)
class Fact:
    """One triple with the file it was read from and the line there (from 1), if that is known."""

    head: str
    relation: str
    tail: str
    source: str = ""
    line: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Head, relation, tail: two facts with the same key are the same fact."""
        return (self.head, self.relation, self.tail)

    @property
    def id(self) -> str:
        """16 hex digits that depend on head, relation and tail only."""
        return hashlib.sha256("\x1f".join(self.key).encode("utf-8")).hexdigest()[:16]

    @property
    def place(self) -> str:
        """`file:line`, or the file alone."""
        return self.source if self.line is None else f"{self.source}:{self.line}"


def tidy(text: object, what: str, place: str) -> str:
    """A name in NFC with single spaces; raises GraphInputError for one that cannot be used."""
    if not isinstance(text, str):
        raise GraphInputError(f"{place}: the {what} {text!r} is no text; write a string")
    name = unicodedata.normalize("NFC", " ".join(text.split()))
    if not name:
        raise GraphInputError(f"{place}: the {what} is empty; give it a name or remove the line")
    if len(name) > LONGEST:
        raise GraphInputError(
            f"{place}: the {what} {name[:40]!r}... has {len(name)} characters, {LONGEST} are "
            "allowed; shorten it"
        )
    for character in name:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise GraphInputError(
                f"{place}: the {what} {name[:40]!r} holds the character {character!a}; remove it"
            )
    return name


def label(name: str) -> str:
    """How a name reads in a text: underscores are spaces, of an IRI only the last part is left."""
    if name == RDF_TYPE:
        return "is a"
    if name.startswith("_:"):
        return name
    if _IRI.fullmatch(name):
        last = re.split(r"[#/:]", name.rstrip("#/:"))[-1]
        name = _CAMEL.sub(" ", last) or name
    return " ".join(name.replace("_", " ").split()) or name
