"""Text from tokens as they arrive: whole characters, stop strings cut exactly."""

from __future__ import annotations

from functools import cache

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from inference.native.text import REPLACEMENT, Detokenizer, StopFinder
from tests.inference.tiny import tokenizer

TEXTS = st.text(max_size=40) | st.text(alphabet="aé東🙂 \n", max_size=40)
WORDS = st.text(alphabet="abé🙂", min_size=1, max_size=5)


@cache
def words() -> Tokenizer:
    return tokenizer().backend_tokenizer


@cache
def fallback() -> Tokenizer:
    """A sentencepiece-like tokenizer: metaspace words, anything else as <0x..> byte tokens."""
    vocab = {f"<0x{b:02X}>": b for b in range(256)} | {"▁a": 256, "b": 257, "▁": 258, "é": 259}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def pieces(core: Tokenizer, ids: list[int]) -> list[str]:
    text = Detokenizer(core.decode)
    return [text.push(i) for i in ids] + [text.finish()]


@given(TEXTS)
def test_pieces_join_to_the_text_without_broken_characters(text: str) -> None:
    found = pieces(words(), words().encode(text).ids)
    assert "".join(found) == text
    assert all(REPLACEMENT not in piece or REPLACEMENT in text for piece in found)


@given(st.lists(st.integers(0, 319), max_size=40))
@example([4 + 0xE2 % 8] * 9)
def test_any_token_ids_decode_as_a_whole_decode_would(ids: list[int]) -> None:
    assert "".join(pieces(words(), ids)) == words().decode(ids)


@given(st.lists(st.sampled_from(["▁a", "b", "▁", "é", *"東🙂é"]), max_size=25))
def test_byte_fallback_tokens(units: list[str]) -> None:
    core = fallback()
    ids = [
        i
        for unit in units
        for i in (
            [core.token_to_id(unit)]
            if core.token_to_id(unit) is not None
            else list(unit.encode("utf-8"))
        )
    ]
    found = pieces(core, ids)
    assert "".join(found) == core.decode(ids)
    assert REPLACEMENT not in "".join(found)


def test_a_cut_character_becomes_one_replacement_at_the_end() -> None:
    ids = words().encode("ab🙂").ids
    assert "".join(pieces(words(), ids[:-1])) == "ab" + REPLACEMENT


@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=3))
@example(["a", "ab"], ["aab"])
@example(["aba", "b"], ["bab", "b🙂"])
def test_stop_strings_cut_at_the_first_occurrence(parts: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    out = ""
    whole = ""
    for part in parts:
        whole += part
        out += finder.push(part)
        # Nothing shown may have to be taken back, and nothing is held without need.
        ends = [whole.find(s) for s in stops if s in whole]
        limit = min(ends) if ends else len(whole)
        assert whole.startswith(out) and len(out) <= limit
        if finder.found is not None:
            break
        held = whole[len(out) :]
        assert not held or any(s.startswith(held) for s in stops)
    out += finder.finish()
    ends = [whole.find(s) for s in stops if s in whole]
    assert out == (whole[: min(ends)] if ends else whole)
    assert (finder.found is not None) == bool(ends)
    assert finder.found is None or whole[len(out) :].startswith(finder.found)


@given(st.text(alphabet="ab🙂東", max_size=30), st.lists(WORDS, max_size=3))
def test_stop_strings_over_real_tokens(text: str, stops: list[str]) -> None:
    detokenizer, finder = Detokenizer(words().decode), StopFinder(stops)
    out = "".join(finder.push(detokenizer.push(i)) for i in words().encode(text).ids)
    out += finder.push(detokenizer.finish()) + finder.finish()
    assert not any(s in out for s in stops)
    assert text.startswith(out) and REPLACEMENT not in out
