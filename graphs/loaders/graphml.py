"""GraphML by networkx, after a reading of our own that admits no document type and no depth."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from graphs.errors import GraphInputError
from graphs.facts import Fact, tidy
from graphs.loaders.reading import Name, read_text

RELATION = ("relation", "label", "type", "name", "predicate")
"""Keys of an edge that may say what it means, the first that is there counts."""
LABEL = ("label", "name")
DEEPEST = 32


@dataclass
class _Edges:
    """Where the edges of a file stand: made-up id -> source, target, line."""

    places: dict[str, tuple[str, str, int]] = field(default_factory=dict)


def load_graphml(file: Path, shown: str) -> Iterator[Fact | Name | GraphInputError]:
    """A fact an edge, from its source to its target; a node's `label` or `name` is its name."""
    import networkx

    text = read_text(file, shown)
    edges = _Edges()
    plain = _plain(text, shown, edges)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = networkx.parse_graphml(
                plain, node_type=str, edge_key_type=str, force_multigraph=True
            )
    except (networkx.NetworkXError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise GraphInputError(f"{shown}: not GraphML ({error}); correct the file") from None
    for node, data in graph.nodes(data=True):
        called = next((data[key] for key in LABEL if isinstance(data.get(key), str)), "")
        if called.strip():
            yield Name(tidy(node, "node id", shown), tidy(called, "label", shown))
    if not edges.places:
        yield GraphInputError(f"{shown}: holds no edge; remove the file or put some into it")
    for _, _, key, data in graph.edges(keys=True, data=True):
        source, target, line = edges.places[key]
        yield _fact(source, target, data, shown, line)


def _fact(
    source: str, target: str, data: dict[str, Any], shown: str, line: int
) -> Fact | GraphInputError:
    place = f"{shown}:{line}"
    relation = next((data[key] for key in RELATION if isinstance(data.get(key), str)), None)
    if relation is None:
        return GraphInputError(
            f"{place}: the edge from {source!r} to {target!r} does not say what it means; give "
            f"it a data key named one of {', '.join(RELATION)}"
        )
    try:
        return Fact(
            tidy(source, "source", place),
            tidy(relation, "relation", place),
            tidy(target, "target", place),
            shown,
            line,
        )
    except GraphInputError as fault:
        return fault


def _plain(text: str, shown: str, edges: _Edges) -> str:
    """The same elements without declarations; every edge gets an id that says where it stands.

    A document type is refused: it is what entities are declared in, the ones that name files and
    the ones that grow. Raises GraphInputError.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    open_tags: list[str] = []

    def place() -> str:
        return f"{shown}:{parser.CurrentLineNumber}"

    def refuse_doctype(*_: object) -> None:
        raise GraphInputError(
            f"{place()}: a document type declaration is not allowed; remove it, and write out "
            "the entities it declares"
        )

    def begin(tag: str, attributes: dict[str, str]) -> None:
        if len(open_tags) >= DEEPEST:
            raise GraphInputError(f"{place()}: elements nested deeper than {DEEPEST}; flatten them")
        open_tags.append(tag)
        if tag.rpartition("}")[2] == "edge":
            ends = (attributes.get("source", ""), attributes.get("target", ""))
            attributes["id"] = f"e{len(edges.places)}"
            edges.places[attributes["id"]] = (*ends, parser.CurrentLineNumber)
        builder.start(_name(tag), {_name(key): value for key, value in attributes.items()})

    def end(tag: str) -> None:
        open_tags.pop()
        builder.end(_name(tag))

    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        raise GraphInputError(
            f"{shown}:{error.lineno}: not XML ({expat.ErrorString(error.code)}); correct the line"
        ) from None
    return ElementTree.tostring(builder.close(), encoding="unicode")


def _name(tag: str) -> str:
    return "{" + tag if "}" in tag else tag
