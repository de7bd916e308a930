"""RDF by rdflib: Turtle and N-Triples. Nothing a file names is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from graphs.errors import GraphInputError
from graphs.facts import Fact, tidy
from graphs.loaders.reading import Name, read_text

if TYPE_CHECKING:
    from rdflib.term import Node

NAMING = (
    "http://www.w3.org/2000/01/rdf-schema#label",
    "http://www.w3.org/2004/02/skos/core#prefLabel",
    "http://www.w3.org/2004/02/skos/core#altLabel",
    "http://xmlns.com/foaf/0.1/name",
    "http://schema.org/name",
    "https://schema.org/name",
)
"""Predicates whose literal is a name of the subject instead of a fact about it."""

_flag = Lock()
"""Held while a flag of rdflib, which all threads share, is set."""


def load_turtle(file: Path, shown: str) -> Iterator[Fact | Name | GraphInputError]:
    """Facts of a Turtle file; the line of a fact is that on which its statement ends."""
    from rdflib import Graph
    from rdflib.plugins.parsers.notation3 import BadSyntax, RDFSink, SinkParser

    text = read_text(file, shown)
    found: list[tuple[Any, Any, Any, int]] = []

    class Recorder(Graph):
        """Keeps statements in the order of the file."""

        def add(self, triple: Any) -> Recorder:
            found.append((*triple, parser.lines + 1))
            return self

    parser: Any = SinkParser(RDFSink(Recorder()), baseURI="file:///", turtle=True)
    fault: GraphInputError | None = None
    try:
        with _lexical():
            parser.loadBuf(text)
    except BadSyntax as error:
        why, line = _why(error), error.lines + 1
        fault = GraphInputError(f"{shown}:{line}: not Turtle ({why}); correct the line")
    except RecursionError:
        place = f"{shown}:{parser.lines + 1}"
        fault = GraphInputError(f"{place}: nested too deep; name the inner nodes")
    except Exception as error:  # rdflib raises whatever its parts raise, say for a bad escape
        place = f"{shown}:{parser.lines + 1}"
        fault = GraphInputError(f"{place}: not Turtle ({_first(error)}); correct the line")
    if fault is not None:
        yield fault
        return
    yield from _facts(found, shown)


def load_ntriples(file: Path, shown: str) -> Iterator[Fact | Name | GraphInputError]:
    """Facts of an N-Triples file, a line each."""
    from rdflib.exceptions import ParserError
    from rdflib.plugins.parsers.ntriples import W3CNTriplesParser

    found: list[tuple[Any, Any, Any, int]] = []
    number = 0

    class Recorder:
        """Keeps statements in the order of the file."""

        def triple(self, head: Any, relation: Any, tail: Any) -> None:
            found.append((head, relation, tail, number))

    parser: Any = W3CNTriplesParser(Recorder())  # type: ignore[arg-type]
    faults: list[GraphInputError] = []
    with _lexical():
        for number, line in enumerate(read_text(file, shown).split("\n"), start=1):
            parser.line = line.rstrip("\r")
            try:
                parser.parseline()
            except (ParserError, ValueError, SyntaxError) as error:
                why = _first(error)
                faults.append(
                    GraphInputError(f"{shown}:{number}: not N-Triples ({why}); correct the line")
                )
    yield from faults
    if not faults:
        yield from _facts(found, shown)


def _facts(
    found: list[tuple[Node, Node, Node, int]], shown: str
) -> Iterator[Fact | Name | GraphInputError]:
    """Statements as facts and names; blank nodes are numbered in the order of the file."""
    from rdflib import BNode, Literal

    blanks: dict[str, str] = {}

    def name(node: Node, what: str, place: str) -> str:
        if isinstance(node, BNode):
            return blanks.setdefault(str(node), f"_:{Path(shown).name}/{len(blanks) + 1}")
        return tidy(str(node), what, place)

    if not found:
        yield GraphInputError(f"{shown}: holds no triple; remove the file or put some into it")
    for head, relation, tail, line in found:
        place = f"{shown}:{line}"
        try:
            entity, about = name(head, "subject", place), name(relation, "predicate", place)
            value = name(tail, "object", place)
        except GraphInputError as fault:
            yield fault
            continue
        if about in NAMING and isinstance(tail, Literal):
            yield Name(entity, value)
        else:
            yield Fact(entity, about, value, shown, line)


@contextmanager
def _lexical() -> Iterator[None]:
    """Literals keep the form they have in the file: it is text here, whatever its datatype."""
    import rdflib

    with _flag:
        before = rdflib.NORMALIZE_LITERALS
        rdflib.NORMALIZE_LITERALS = False
        try:
            yield
        finally:
            rdflib.NORMALIZE_LITERALS = before


def _why(error: Any) -> str:
    return str(error._why).splitlines()[0][:120]


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
