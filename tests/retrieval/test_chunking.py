"""Passages: exact offsets, full coverage, sizes within the window."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from retrieval import chunking
from retrieval.chunking import ChunkSettings, chunk, chunk_settings
from retrieval.embedding import Embedder, default_embedder
from retrieval.errors import RetrievalInputError

WORDS = st.sampled_from(
    [
        "alpha",
        "Beta.",
        "gamma!",
        "naïve",
        "unbelievable",
        "ß",
        "漢字。",
        "\u200b",
        "\x07",
        "x" * 150,
    ]
)
GAPS = st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "\t", "", "\u3000"])
TEXT = st.lists(st.tuples(WORDS, GAPS), max_size=400).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)
ANY = st.text(max_size=300)
SIZES = st.integers(8, 60).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size // 4)))
"""Sizes and overlaps as `ChunkSettings` admits them: an overlap is at most a quarter."""


@given(text=TEXT | ANY, sizes=SIZES)
@settings(max_examples=150, deadline=None)
def test_spans_are_exact_ordered_and_cover_every_character(
    text: str, sizes: tuple[int, int]
) -> None:
    spans = list(chunk(text, default_embedder().offsets, *sizes))
    covered = [False] * len(text)
    for start, end in spans:
        assert text[start:end] == text[start:end].strip() != ""
        covered[start:end] = [True] * (end - start)
    assert all(seen or letter.isspace() for seen, letter in zip(covered, text, strict=True))
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    assert starts == sorted(set(starts)) and ends == sorted(set(ends))


@given(text=st.lists(st.sampled_from(["one", "Two", "three.", "x!"]), max_size=500).map(" ".join))
@settings(max_examples=40, deadline=None)
def test_passages_fit_the_window(text: str) -> None:
    embedder, size = default_embedder(), ChunkSettings()
    for start, end in chunk(text, embedder.offsets, size.tokens, size.overlap):
        assert embedder.count(text[start:end]) <= embedder.window


def test_cuts_at_paragraphs_then_sentences_then_words(embedder: Embedder) -> None:
    def pieces(text: str) -> list[str]:
        return [text[a:b] for a, b in chunk(text, embedder.offsets, 10, 0)]

    assert pieces("one two three four five six\n\nseven. eight nine ten eleven twelve") == [
        "one two three four five six",
        "seven. eight nine ten eleven twelve",
    ]
    assert pieces("one two three four five six. seven eight nine ten eleven")[0] == (
        "one two three four five six."
    )
    assert pieces("one two three four five six seven eight nine ten eleven") == [
        "one two three four five six seven eight nine ten",
        "eleven",
    ]


def test_neighbours_overlap_from_a_sentence_start(embedder: Embedder) -> None:
    text = "Alpha runs far. Beta sits. Gamma walks home today. Delta sleeps well. Omega ends it."
    spans = list(chunk(text, embedder.offsets, 12, 5))
    assert len(spans) > 1
    for (_, end), (start, _) in pairwise(spans):
        assert start < end
        assert text[start - 2 : start] == ". "


def test_blocks_do_not_change_what_is_found(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The quick brown fox jumps. " * 300
    whole = list(chunk(text, embedder.offsets, 50, 10))
    monkeypatch.setattr(chunking, "BLOCK", 500)
    assert list(chunk(text, embedder.offsets, 50, 10)) == whole


def test_the_tokenizer_of_the_model_is_not_truncating(embedder: Embedder) -> None:
    shipped = Tokenizer.from_file(str(embedder.folder / "tokenizer.json"))
    shipped.no_truncation()
    shipped.no_padding()
    text = "word " * 1000
    assert len(embedder.offsets(text)) == len(shipped.encode(text).ids) - 2 == 1000


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tokens": 31}, "tokens=31"),
        ({"tokens": 255}, "tokens=255"),
        ({"overlap": -1}, "overlap=-1"),
        ({"tokens": 64, "overlap": 17}, "a quarter of tokens=64"),
    ],
)
def test_bad_sizes_are_named(options: dict[str, int], named: str) -> None:
    with pytest.raises(RetrievalInputError, match=named):
        chunk_settings(options)
