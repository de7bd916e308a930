"""An opened graph: facts, entities, walks; networkx holds it once somebody walks.

The text of a graph is its file facts.txt, a line per fact in the order of head, relation and tail:
offsets of passages are offsets into that text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from graphs.build import FACTS, OF_NAMES, read_content
from graphs.errors import BadGraph, GraphInputError, UnknownEntity
from graphs.facts import Fact
from graphs.manifest import REBUILD, GraphManifest, read_manifest, verify
from graphs.names import Match, Names
from graphs.walk import Direction, Leg, Near, Walker
from inference.suggest import nearest
from retrieval.arrays import map_array
from retrieval.bm25 import FILES as BM25_FILES
from retrieval.bm25 import Bm25
from retrieval.retriever import Passage

if TYPE_CHECKING:
    from networkx import MultiDiGraph

MAX_HOPS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """Facts around an entity, nearest first; not `complete` if a limit left some out."""

    near: list[Near]
    complete: bool


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths between two entities, shortest first; not `complete` if a limit left some out."""

    paths: list[list[Leg]]
    complete: bool


class GraphStore:
    """One generation of a graph in memory; safe to share between threads.

    Later changes of the folder, its removal included, do not touch a store that is open.
    """

    def __init__(self, path: Path, manifest: GraphManifest) -> None:
        self.path, self.manifest = path, manifest
        folder = manifest.folder(path)
        content = read_content(path, manifest)
        self.facts: list[Fact] = list(content.facts.values())
        self.entities = content.entities()
        self.texts = (folder / FACTS).read_text(encoding="utf-8").split("\n")[:-1]
        if len(self.texts) != len(self.facts):
            raise BadGraph(f"{folder / FACTS}: not a line per fact; {REBUILD}")
        self._starts = [0, *accumulate(len(text) + 1 for text in self.texts)]
        self._names = content.names
        self._words = {name: _read(folder / name) for name in BM25_FILES}
        self._of_names = {name: _read(folder / f"{OF_NAMES}{name}") for name in BM25_FILES}
        self._lock = RLock()

    @classmethod
    def open(cls, path: str | Path) -> GraphStore:
        """Open a graph folder; the manifest and the hash of every file are checked first.

        Raises BadGraph naming the file that is missing or changed. Who opens a generation that is
        open already gets the same store.
        """
        folder = Path(path)
        while True:
            manifest = read_manifest(folder)
            key = (folder.resolve(), manifest.generation)
            with _opening:
                if (store := _open.get(key)) is not None:
                    return store
                try:
                    verify(folder, manifest)
                    store = _open[key] = cls(folder, manifest)
                except (BadGraph, FileNotFoundError):
                    # a change of the graph meanwhile removed the generation we read
                    if read_manifest(folder).generation == manifest.generation:
                        raise
                    continue
            return store

    def __len__(self) -> int:
        """Number of facts."""
        return len(self.facts)

    @cached_property
    def graph(self) -> MultiDiGraph[str]:
        """Entities and facts in networkx; the key of an edge is its relation, `row` its number."""
        import networkx

        graph: MultiDiGraph[str] = networkx.MultiDiGraph()
        for row, fact in enumerate(self.facts):
            graph.add_edge(fact.head, fact.tail, key=fact.relation, row=row)
        return graph

    @cached_property
    def names(self) -> Names:
        """What the entities are called."""
        return Names(self.entities, self._names, Bm25.load(self._of_names, len(self.entities)))

    @cached_property
    def words(self) -> Bm25:
        """BM25 over the texts of the facts."""
        return Bm25.load(self._words, len(self.facts))

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id of a fact -> its row."""
        return {fact.id: row for row, fact in enumerate(self.facts)}

    def find(self, mention: str, limit: int = 5) -> list[Match]:
        """Entities that a mention may mean, best first, each with how it was found."""
        with self._lock:
            return self.names.find(_asked(mention), _count(limit, "limit"))

    def link(self, text: str, limit: int = 5) -> list[Match]:
        """Entities that a text mentions."""
        with self._lock:
            return self.names.link(_asked(text), _count(limit, "limit"))

    def entity(self, mention: str) -> Match:
        """The entity that a mention means for sure; raises UnknownEntity with what is near."""
        found = self.find(mention)
        sure = [match for match in found if match.how in ("exact", "name")]
        if len(sure) == 1:
            return sure[0]
        if sure:
            which = ", ".join(repr(match.entity) for match in sure)
            raise UnknownEntity(f"the name {mention!r} stands for several entities; give {which}")
        near = ", ".join(repr(match.label) for match in found)
        raise UnknownEntity(
            f"no entity {mention!r}; "
            + (f"did you mean one of {near}?" if near else "search the graph for its name")
        )

    def neighbours(
        self,
        entity: str,
        hops: int = 1,
        limit: int = 100,
        relations: Collection[str] | None = None,
        direction: Direction = Direction.BOTH,
    ) -> Found:
        """Facts within `hops` of an entity of this graph, nearest first."""
        walker = self._walker(relations, direction)
        self._require(entity)
        near = walker.near(entity, _hops(hops), _count(limit, "limit"))
        return Found(near, walker.complete)

    def paths(
        self,
        start: str,
        goal: str,
        hops: int = 4,
        limit: int = 10,
        relations: Collection[str] | None = None,
        direction: Direction = Direction.BOTH,
        *,
        shortest: bool = False,
    ) -> Paths:
        """Paths of at most `hops` facts between two entities of this graph, shortest first."""
        walker = self._walker(relations, direction)
        self._require(start)
        self._require(goal)
        if start == goal:
            raise GraphInputError(f"a path needs two entities, {start!r} is given twice")
        found = walker.paths(start, goal, _hops(hops), _count(limit, "limit"), shortest=shortest)
        return Paths(found, walker.complete)

    def passage(self, row: int) -> Passage:
        """A fact as a passage: title and metadata say what it is about, `source` where it stood."""
        fact, start = self.facts[row], self._starts[row]
        identifier = fact.id
        return Passage(
            id=f"{identifier}#0",
            document_id=identifier,
            title=self.names.called(fact.head)[0],
            source=fact.place,
            start=start,
            end=start + len(self.texts[row]),
            text=self.texts[row],
            metadata=metadata(fact),
        )

    def describe(self, row: int) -> dict[str, Any]:
        """A fact as a plain JSON object."""
        fact = self.facts[row]
        return {
            "id": fact.id,
            "head": fact.head,
            "relation": fact.relation,
            "tail": fact.tail,
            "text": self.texts[row],
            "source": fact.source,
            "line": fact.line,
        }

    def describe_path(self, path: Sequence[Leg]) -> dict[str, Any]:
        """A path: its facts, each with the entity it leads to and whether that is its tail."""
        legs = [{**self.describe(leg.row), "to": leg.to, "forward": leg.forward} for leg in path]
        return {"length": len(legs), "facts": legs}

    def _walker(self, relations: Collection[str] | None, direction: Direction) -> Walker:
        for relation in relations or ():
            if relation not in self.manifest.relations:
                raise GraphInputError(
                    f"unknown relation {relation!r}; {nearest(relation, self.manifest.relations)}"
                )
        with self._lock:
            return Walker(self.graph, relations, direction)

    def _require(self, entity: str) -> None:
        if entity not in self.graph:
            raise UnknownEntity(f"no entity {entity!r}; find its identity by its name first")


_open: WeakValueDictionary[tuple[Path, str], GraphStore] = WeakValueDictionary()
_opening = Lock()


def metadata(fact: Fact) -> Mapping[str, Any]:
    """What `where` filters by."""
    return {
        "head": fact.head,
        "relation": fact.relation,
        "tail": fact.tail,
        "file": fact.source,
        "line": fact.line,
    }


def _asked(text: str) -> str:
    if not text.strip():
        raise GraphInputError(f"the name or text {text!r} is empty; give it words")
    return text


def _hops(hops: int) -> int:
    if not 1 <= hops <= MAX_HOPS:
        raise GraphInputError(f"hops={hops!r} must be 1 to {MAX_HOPS}")
    return hops


def _count(value: int, what: str) -> int:
    if value < 1:
        raise GraphInputError(f"{what}={value!r} must be at least 1")
    return value


def _read(file: Path) -> Any:
    return map_array(file) if file.suffix == ".npy" else file.read_bytes()
