"""Building and changing a graph folder.

A graph folder holds `manifest.json` and one folder with the files that it names. They are written
beside the graph and moved in; then the manifest is replaced, by one rename. That is the moment at
which the graph changes, so an interruption at any point leaves the old graph usable.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from graphs.errors import GraphError, GraphInputError, UnknownEntity
from graphs.facts import Fact, label, tidy
from graphs.loaders import Loaded, load
from graphs.manifest import GraphManifest, is_graph, read_manifest, verify
from retrieval.arrays import sync
from retrieval.bm25 import FILES as BM25_FILES
from retrieval.bm25 import Bm25
from retrieval.manifest import GENERATION, NAME, entry

TRIPLES, NAMES, FACTS = "triples.jsonl", "names.jsonl", "facts.txt"
OF_NAMES = "names."
"""What stands before the BM25 files of the entities' names."""
MAX_TRIPLES = 5_000_000
LOCK_SECONDS = 3600

Triple = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What a build did; `triples`, `entities` and `relations` count what is there afterwards.

    `duplicates` facts were there already or were given twice.
    """

    graph: str
    triples: int
    entities: int
    relations: int
    added: int
    removed: int
    duplicates: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


@dataclass
class Content:
    """Facts by head, relation and tail, and the names of entities."""

    facts: dict[Triple, Fact]
    names: dict[str, list[str]]

    def entities(self) -> list[str]:
        """Every head and tail, sorted."""
        return sorted({name for head, _, tail in self.facts for name in (head, tail)})

    def shown(self, entity: str) -> str:
        """How an entity reads in a text: its first name, or what its identity looks like."""
        names = self.names.get(entity)
        return names[0] if names else label(entity)


def build_graph(given: str | Path | Iterable[Fact] | Loaded, out: str | Path) -> GraphReport:
    """Make `out` the graph of exactly these facts (a file, a folder, or facts).

    A graph that is already there is replaced in one step. Raises GraphInputError (nothing
    changed) for bad facts or a folder that is not a graph, GraphError when writing fails.
    """
    loaded = _loaded(given)
    return _change(Path(out), lambda old: _union(old, loaded), required=False)


def add_facts(graph: str | Path, given: str | Path | Iterable[Fact] | Loaded) -> GraphReport:
    """Add facts to a graph; one that it holds already stays as it is.

    Raises as `build_graph` does, and BadGraph if the graph cannot be used as it is.
    """
    loaded = _loaded(given)
    return _change(Path(graph), lambda old: _union(old, loaded), required=True)


def remove_facts(graph: str | Path, triples: Sequence[Triple]) -> GraphReport:
    """Remove facts from a graph; raises GraphInputError for one that it does not hold."""

    def without(old: Content) -> int:
        for triple in triples:
            if triple not in old.facts:
                raise UnknownEntity(
                    f"{graph}: holds no fact {triple!r}; take it from `ragwright graph search`"
                )
            del old.facts[triple]
        if not old.facts:
            raise GraphInputError(f"{graph}: no fact would be left; delete the folder instead")
        return 0

    return _change(Path(graph), without, required=True)


def read_content(graph: Path, manifest: GraphManifest) -> Content:
    """Facts and names of a graph whose files have been verified."""
    folder = manifest.folder(graph)
    with (folder / TRIPLES).open("rb") as lines:
        facts = [Fact(*json.loads(line)) for line in lines]
    with (folder / NAMES).open("rb") as lines:
        names: dict[str, list[str]] = dict(json.loads(line) for line in lines)
    return Content({fact.key: fact for fact in facts}, names)


def _loaded(given: str | Path | Iterable[Fact] | Loaded) -> Loaded:
    if isinstance(given, Loaded):
        return given
    if isinstance(given, str | Path):
        return load(given)
    loaded = Loaded()
    for number, fact in enumerate(given, start=1):
        place = fact.place or f"fact {number}"
        head, relation, tail = (
            tidy(name, what, place)
            for name, what in zip(fact.key, ("head", "relation", "tail"), strict=True)
        )
        loaded.facts.append(replace(fact, head=head, relation=relation, tail=tail))
    return loaded


def _union(old: Content, loaded: Loaded) -> int:
    """Add what was loaded to `old`; the number of facts that it held already."""
    if not loaded.facts and not loaded.names:
        raise GraphInputError("no facts were given; give at least one")
    if not loaded.facts and not old.facts:
        raise GraphInputError("only names of entities were given; give at least one fact")
    for fact in loaded.facts:
        old.facts.setdefault(fact.key, fact)
        if len(old.facts) > MAX_TRIPLES:
            raise GraphInputError(
                f"more than {MAX_TRIPLES} facts; split the graph into several folders"
            )
    for entity, names in loaded.names.items():
        known = old.names.setdefault(entity, [])
        known += [name for name in names if name not in known]
    return len(loaded.facts)


def _change(out: Path, change: Callable[[Content], int], *, required: bool) -> GraphReport:
    """Let `change` work on what `out` holds and publish the outcome; it tells the facts given."""
    started = time.perf_counter()
    target = out.absolute()
    if target.exists() and not is_graph(target) and any(_entries(target)):
        if required:
            read_manifest(target)
        raise GraphInputError(f"{out}: exists and is not a graph; choose another folder")
    if required:
        read_manifest(target)
    with _locked(target):
        content, before = Content({}, {}), 0
        if required:
            manifest = read_manifest(target)
            verify(target, manifest)
            content, before = read_content(target, manifest), manifest.triples
        given = change(content)
        manifest = _publish(target, content)
    after = manifest.triples
    added = max(after - before, 0)
    return GraphReport(
        graph=str(out),
        triples=after,
        entities=manifest.entities,
        relations=len(manifest.relations),
        added=added,
        removed=max(before - after, 0),
        duplicates=given - added if given else 0,
        seconds=round(time.perf_counter() - started, 3),
    )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Only one process writes a graph at a time; what the system refuses is told as GraphError."""
    lock, staging = out.parent / f".{out.name}.lock", out.parent / f".{out.name}.staging"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=LOCK_SECONDS):
            try:
                yield
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                lock.unlink(missing_ok=True)  # a waiter notices and locks a file of its own
    except Timeout:
        raise GraphError(
            f"{out}: another process has held {lock} for an hour; wait for it or stop it"
        ) from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free space there and try again" if full else "make the folder writable"
        raise GraphError(
            f"{out}: cannot write the graph ({error.strerror or error}); what was there before "
            f"is unchanged; {remedy}"
        ) from error


def _publish(out: Path, content: Content) -> GraphManifest:
    """Write the files beside the graph, move them in, and replace the manifest (the commit)."""
    staging = out.parent / f".{out.name}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    fresh = staging / "new"
    fresh.mkdir(parents=True)
    manifest = _write(fresh, content)
    out.mkdir(exist_ok=True)
    if _current(out) == manifest:
        return manifest
    target = manifest.folder(out)
    if target.exists():  # damaged, or of an interrupted build
        manifest = manifest.model_copy(update={"generation": manifest.generation + "r"})
        target = manifest.folder(out)
        shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    draft = staging / NAME
    draft.write_bytes(manifest.encode())
    sync(draft)
    sync(out)
    draft.replace(out / NAME)
    sync(out)
    for other in out.iterdir():
        if GENERATION.fullmatch(other.name) and other != target:
            shutil.rmtree(other, ignore_errors=True)
    return manifest


def _write(folder: Path, content: Content) -> GraphManifest:
    """The files of a generation, forced to disk."""
    keys, entities = sorted(content.facts), content.entities()
    texts = [
        f"{content.shown(head)} {label(relation)} {content.shown(tail)}"
        for head, relation, tail in keys
    ]
    facts = [content.facts[key] for key in keys]
    _lines(folder / TRIPLES, ([*fact.key, fact.source, fact.line] for fact in facts))
    _lines(folder / NAMES, ([name, content.names[name]] for name in sorted(content.names)))
    (folder / FACTS).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    Bm25.write(_words(content.names, entities), folder)
    for name in BM25_FILES:
        (folder / name).rename(folder / f"{OF_NAMES}{name}")
    Bm25.write(texts, folder)
    files = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        files[file.name] = entry(file)
    listed = json.dumps({name: one.sha256 for name, one in files.items()})
    return GraphManifest(
        generation=hashlib.sha256(listed.encode("utf-8")).hexdigest()[:16],
        triples=len(keys),
        entities=len(entities),
        relations=dict(sorted(Counter(relation for _, relation, _ in keys).items())),
        files=files,
    )


def _words(names: Mapping[str, list[str]], entities: list[str]) -> Iterator[str]:
    """What BM25 reads of each entity: everything it is called."""
    for entity in entities:
        yield "\n".join([label(entity), *names.get(entity, ())])


def _lines(file: Path, rows: Iterable[list[Any]]) -> None:
    with file.open("wb") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


def _current(out: Path) -> GraphManifest | None:
    """The manifest in force if the graph is whole, else None."""
    try:
        manifest = read_manifest(out)
        verify(out, manifest)
    except GraphInputError:
        return None
    return manifest


def _entries(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else (folder,)
