"""Index build and search against raw FAISS and bm25s, memory of a build, retrieval quality."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bm25s
import faiss
import numpy as np
from Stemmer import Stemmer

from retrieval.bm25 import K1 as K
from retrieval.bm25 import STOPWORDS, TITLE_WEIGHT, B
from retrieval.cache import index_for_docs
from retrieval.documents import Document
from retrieval.embedding import Embedder, Vectors, default_embedder
from retrieval.index import build_index, open_index
from retrieval.store import Index
from retrieval.table import retriever_config
from tests.bench.figures import Figure, against, alone, pairs

ROOT = Path(__file__).resolve().parents[2]
HOTPOTQA = ROOT.parent / "shared" / "data" / "hotpotqa"
DEPTH, HITS, RRF = 100, 5, 60.0
PEER = "faiss + bm25s"

MEMORY = """
import re, sys
from pathlib import Path
from tests.bench.retrieval import corpus
from retrieval.index import build_index

report = build_index(corpus(int(sys.argv[1]), 12), Path(sys.argv[2]))
# Not getrusage: its peak begins with that of the process that started this one.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(report.passages, int(peak[1]) * 1024)
"""


def run(*, embedded: int = 256, passages: int = 10_000, n: int = 5) -> list[Figure]:
    """All figures; `embedded` passages with the real embedder, `passages` for the rest."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        return [
            *build_figures(folder, embedded, passages, n),
            *search_figures(folder, passages, 8 * n),
            *memory_figures(folder, passages),
            *quality_figures(),
        ]


def corpus(count: int, words: int) -> list[Document]:
    """Documents of one passage each, of words drawn by Zipf's law; the same for every run."""
    chance = random.Random(count)
    vocabulary = ["".join(chance.choices("abcdefghilmnoprstu", k=3 + n % 7)) for n in range(20_000)]
    weights = [1 / (n + 1) for n in range(len(vocabulary))]
    texts = (" ".join(chance.choices(vocabulary, weights, k=words)) for _ in range(count))
    return [Document(f"d{n}", f"Title {n}", "bench", text) for n, text in enumerate(texts)]


class Given(Embedder):
    """The real tokenizer with vectors drawn beforehand: a build without the forward passes."""

    drawn: Vectors
    used = 0

    def embed(self, texts: Sequence[str], batch_size: int | None = None) -> Vectors:
        """The next drawn vectors, all different until they are used up."""
        rows = range(self.used, self.used + len(texts))
        self.used = rows.stop
        return self.drawn.take(rows, axis=0, mode="wrap")


def given(dimensions: int, count: int) -> Given:
    """An embedder of `count` random unit vectors."""
    embedder = Given(default_embedder().folder)
    drawn = np.random.default_rng(0).standard_normal((count, dimensions), dtype=np.float32)
    embedder.drawn = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return embedder


class Peer:
    """The libraries underneath, used directly, for the same passages."""

    def __init__(self, documents: Sequence[Document], embedder: Embedder, out: Path) -> None:
        """Embed the texts, add to FAISS, index titles and texts by bm25s, and save both."""
        self.embedder = embedder
        texts = [document.text for document in documents]
        self.faiss: Any = faiss.IndexFlatIP(embedder.dimensions)
        for low in range(0, len(texts), 1024):
            block = sorted(texts[low : low + 1024], key=len)
            for start in range(0, len(block), 32):
                self.faiss.add(embedder.embed(block[start : start + 32]))
        tokens = self.tokens([f"{d.title}\n" * TITLE_WEIGHT + d.text for d in documents])
        self.bm25 = bm25s.BM25(k1=K, b=B, method="lucene", backend="numpy")
        self.bm25.index(tokens, show_progress=False)
        out.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self.faiss, str(out / "faiss"))
        self.bm25.save(out / "bm25", show_progress=False)

    def tokens(self, texts: Sequence[str]) -> Any:
        """bm25s' own tokenizer with our stop words and stemmer."""
        return bm25s.tokenize(
            list(texts),
            stopwords=sorted(STOPWORDS),
            stemmer=Stemmer("english"),
            show_progress=False,
            return_ids=False,
        )

    def words(self, query: str) -> Any:
        """bm25s' best rows."""
        return self.bm25.retrieve(self.tokens([query]), k=DEPTH, show_progress=False)

    def search(self, query: str) -> list[int]:
        """Embed, both searches, reciprocal rank fusion."""
        _, rows = self.faiss.search(self.embedder.embed([query]), DEPTH)
        fused: dict[int, float] = {}
        for ranking in (rows[0].tolist(), self.words(query).documents[0].tolist()):
            for rank, row in enumerate(ranking, start=1):
                fused[row] = fused.get(row, 0.0) + 1 / (RRF + rank)
        return sorted(fused, key=lambda row: -fused[row])[:HITS]


def build_figures(folder: Path, embedded: int, passages: int, n: int) -> list[Figure]:
    """A build with the embedder on both sides, the embedder alone, and a build without it."""
    fresh = _fresh_names(folder)
    real = default_embedder()
    some = corpus(embedded, 60)
    texts = [document.text for document in some]
    figures = [
        paired(
            f"build {embedded} passages",
            lambda: build_index(some, fresh()),
            PEER,
            lambda: Peer(some, real, fresh()),
            n=n,
        ),
        alone(
            f"embed {embedded} passages",
            "s",
            [_seconds(lambda: real.embed(texts)) for _ in range(n)],
        ),
    ]
    many, drawn = corpus(passages, 60), given(real.dimensions, passages)
    figures.append(
        paired(
            f"build {passages} passages, vectors given",
            lambda: build_index(many, fresh(), embedder=drawn),
            PEER,
            lambda: Peer(many, drawn, fresh()),
            n=3,
        )
    )
    return figures


def search_figures(folder: Path, passages: int, n: int) -> list[Figure]:
    """One query at a time over an index of `passages`: whole, dense part, lexical part."""
    documents, real = corpus(passages, 60), default_embedder()
    drawn = given(real.dimensions, passages)
    build_index(documents, folder / "search", embedder=drawn)
    peer = Peer(documents, drawn, folder / "search-peer")
    peer.embedder = real
    index: Index = open_index(folder / "search")
    hybrid = retriever_config("hybrid").open(folder / "search")
    queries = [" ".join(document.text.split()[:8]) for document in documents[:n]]
    vectors = real.embed(queries)

    def each(work: Callable[[int], object]) -> Callable[[], object]:
        turn = iter(range(10**9))
        return lambda: work(next(turn) % n)

    return [
        paired(
            "search, one query",
            each(lambda q: hybrid.search([queries[q]], HITS)),
            PEER,
            each(lambda q: peer.search(queries[q])),
            n=n,
            unit="ms",
            scale=1e3,
        ),
        paired(
            "search, dense part without embedding",
            each(lambda q: index.dense.nearest(vectors[q : q + 1], DEPTH, None)),
            "faiss",
            each(lambda q: peer.faiss.search(vectors[q : q + 1], DEPTH)),
            n=n,
            unit="ms",
            scale=1e3,
        ),
        paired(
            "search, lexical part",
            each(lambda q: index.bm25.rank([queries[q]], DEPTH, None, matching=True)),
            "bm25s",
            each(lambda q: peer.words(queries[q])),
            n=n,
            unit="ms",
            scale=1e3,
        ),
    ]


def memory_figures(folder: Path, passages: int) -> list[Figure]:
    """Peak resident memory of builds in processes of their own, and its growth a passage."""
    peaks = {}
    for count in (passages // 5, passages):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(count), str(folder / f"memory-{count}")],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        found, peaks[count] = map(int, done.stdout.split())
        if found != count:
            raise ValueError(f"the build holds {found} passages instead of {count}")
    small, large = peaks.values()
    growth = (large - small) / (passages - passages // 5)
    return [
        *(
            Figure(f"peak memory, build of {count} passages", peak / 2**20, "MiB")
            for count, peak in peaks.items()
        ),
        Figure("memory growth of a build", growth / 2**10, "KiB/passage"),
    ]


def quality_figures() -> list[Figure]:
    """Share of supporting passages in the top 5 on HotpotQA; nothing where it is absent."""
    if not HOTPOTQA.is_dir():
        return []
    recall, n = supporting_recall()
    return [
        Figure("recall@5 dense", recall["dense"], "share", n=n),
        Figure("recall@5 bm25", recall["bm25"], "share", n=n),
        *(
            Figure(
                f"recall@5 hybrid over {part}",
                recall["hybrid"],
                "share",
                peer=part,
                peer_value=recall[part],
                ratio=recall["hybrid"] / recall[part],
                n=n,
            )
            for part in ("dense", "bm25")
        ),
    ]


def supporting_recall(k: int = 5) -> tuple[dict[str, float], int]:
    """Retriever -> mean share of a question's supporting documents in its top k; questions."""
    lines = (HOTPOTQA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    index = index_for_docs(HOTPOTQA / "corpus.jsonl")
    recall = {}
    for name in ("dense", "bm25", "hybrid"):
        found = retriever_config(name).open(index).search([q["question"] for q in questions], k)
        shares = []
        for question, hits in zip(questions, found, strict=True):
            wanted = set(question["supporting"])
            shares.append(len(wanted & {h.passage.document_id for h in hits}) / len(wanted))
        recall[name] = statistics.mean(shares)
    return recall, len(questions)


def paired(
    name: str,
    ours: Callable[[], object],
    peer_name: str,
    peer: Callable[[], object],
    *,
    n: int,
    unit: str = "s",
    scale: float = 1.0,
) -> Figure:
    """Wall time of both in turn; `scale` turns seconds of one call into `unit`."""
    measured = pairs(lambda: scale * _seconds(ours), lambda: scale * _seconds(peer), n)
    return against(name, unit, peer_name, measured)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _fresh_names(folder: Path) -> Callable[[], Path]:
    """A folder name that was not used before, at every call."""
    numbers = iter(range(10**9))
    return lambda: folder / f"build-{next(numbers)}"
