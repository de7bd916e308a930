"""A drafting model's lines: its logits are the text's own, after any tree, cut and neighbour."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import DrafterInputError, InferenceError
from inference.native.model import Model
from inference.speculative.small import Line, Second
from tests.inference.test_batching import VARIANTS
from tests.inference.tiny import checkpoint, network, tokenizer

Models = Callable[[int], Model]
KINDS = [kind for kind, _ in VARIANTS]
ROOM = 2**24


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A model per family, loaded once; the last one by transformers' forward pass."""

    @lru_cache
    def get(at: int) -> Model:
        kind, options = VARIANTS[at % len(VARIANTS)]
        folder = tmp_path_factory.mktemp(kind)
        checkpoint(folder, kind, seed=4, context=128, **options)
        path = "auto" if at < len(VARIANTS) else "transformers"
        return Model.load(folder, str(folder), "float32", "cpu", path=path)

    return get


def truth(model: Model, ids: list[int]) -> torch.Tensor:
    """Logits behind `ids` as transformers alone computes them."""
    with torch.no_grad():
        found: torch.Tensor = network(model.name)(torch.tensor([ids])).logits[0, -1]
    return found


def same(found: torch.Tensor | None, wanted: torch.Tensor) -> None:
    assert found is not None and found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-3)


def told(second: Second, lines: list[Line]) -> list[torch.Tensor]:
    """Logits of all lines, in as many passes as it takes."""
    found: list[torch.Tensor | None] = [None] * len(lines)
    while any(one is None for one in found):
        left = [at for at, one in enumerate(found) if one is None]
        assert all(lines[at].lost is None for at in left)
        for at, logits in zip(left, second.step([lines[at] for at in left]), strict=True):
            found[at] = logits
    return [one for one in found if one is not None]


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6), budget=st.sampled_from([3, 20, 512]), tree=st.booleans())
@pytest.mark.parametrize("at", range(len(VARIANTS) + 1), ids=[*KINDS, "transformers"])
def test_logits_are_those_of_the_text_whatever_was_drafted(
    models: Models, at: int, seed: int, budget: int, tree: bool
) -> None:
    """Random prompts, drafts and cuts; most ids that follow are some path of the draft."""
    model, draw = models(at), random.Random(seed)
    second = Second(model, model, ROOM, step_tokens=budget)
    word = lambda: draw.randrange(4, 12)  # noqa: E731  few words: wrong ones are often right again
    texts = [[word() for _ in range(draw.randint(1, 40))] for _ in range(draw.randint(1, 4))]
    texts.append([*texts[0], word()])
    lines = [second.admit(text, tenant=draw.choice("ab")) for text in texts]
    for _ in range(3):
        for line, text in zip(lines, texts, strict=True):
            second.sync(line, text)
            assert line.row.cached < len(text)
        for logits, text in zip(told(second, lines), texts, strict=True):
            same(logits, truth(model, text))
        paths: list[list[list[int]]] = [[[]] for _ in lines]  # tokens down to each node
        for _ in range(draw.randint(1, 5)):
            asked = draw.sample(range(len(lines)), draw.randint(1, len(lines)))
            for n in asked:
                below = draw.randint(-1, len(lines[n].parents) - 1) if tree else None
                lines[n].push(word(), below)
                node = -1 if below is None else below + 1
                paths[n].append([*paths[n][node], lines[n].ids[-1]])
            for n, logits in zip(asked, told(second, [lines[n] for n in asked]), strict=True):
                same(logits, truth(model, [*texts[n], *paths[n][-1]]))
        for n, text in enumerate(texts):
            cut = draw.choice([len(text), len(text), draw.randint(1, len(text))])
            texts[n] = [*text[:cut], *draw.choice(paths[n]), word()]
    for line in lines:
        second.free(line)
    assert second.used_bytes == 0


@pytest.mark.parametrize("at", [0, 2], ids=["full", "sliding"])
def test_a_sibling_is_never_seen(models: Models, at: int) -> None:
    """What stands in another branch changes no number of this one."""
    model, found = models(at), []
    for sibling in (9, 200):
        second = Second(model, model, ROOM)
        (line,) = [second.admit(list(range(4, 40)))]
        told(second, [line])
        first = line.push(50)
        told(second, [line])
        for token in (sibling, sibling + 1):
            line.push(token, first if token == sibling else None)
            told(second, [line])
        line.push(60, first)
        found.append(told(second, [line])[0])
    assert torch.equal(found[0], found[1])


def test_what_is_kept_is_what_a_fresh_reading_holds(models: Models) -> None:
    model = models(0)
    second, fresh = (Second(model, model, ROOM) for _ in range(2))
    text = [random.Random(3).randrange(4, 320) for _ in range(37)]
    line = second.admit(text)
    told(second, [line])
    nodes = {-1: -1}
    for at, (token, parent) in enumerate([(5, -1), (6, -1), (7, 0), (8, 1), (9, 1), (10, 4)]):
        nodes[at] = line.push(token, nodes[parent])
        told(second, [line])
    text += [6, 9, 10]
    read = line.read
    second.sync(line, [*text, 11])
    assert line.row.cached == len(text)  # the accepted path was not computed again
    told(second, [line])
    assert line.read == read + 1
    other = fresh.admit([*text, 11])
    told(fresh, [other])
    for layer in range(model.config.num_hidden_layers):
        for one, two in (("keys", "keys"), ("values", "values")):
            mine = getattr(second._runner.store, one)[layer]
            theirs = getattr(fresh._runner.store, two)[layer]
            size = second._blocks.size
            for place in range(len(text) + 1):
                here = line.row.blocks[place // size] * size + place % size
                there = other.row.blocks[place // size] * size + place % size
                torch.testing.assert_close(mine[here], theirs[there], rtol=1e-4, atol=1e-5)


def test_prompts_that_begin_alike_are_read_once_within_a_tenant(models: Models) -> None:
    model = models(0)
    second = Second(model, model, ROOM)
    text = list(range(4, 90))
    line = second.admit(text, tenant="a")
    told(second, [line])
    second.sync(line, [*text, 5])
    assert second.admit([*text, 6], tenant="a").row.cached == 80
    assert second.admit([*text, 6], tenant="b").row.cached == 0
    second.free(line)
    assert second.admit(text, tenant="a").row.cached == 80


def test_without_memory_a_request_has_no_draft(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(0)
    token = Second(model, model, ROOM)._runner.store.token_bytes
    second = Second(model, model, 3 * 16 * token)
    long, short = second.admit(list(range(4, 60))), second.admit(list(range(4, 20)))
    logits = second.step([long, short])
    assert logits[0] is None and long.lost == "memory"
    same(logits[1], truth(model, list(range(4, 20))))
    assert second.used_bytes == 16 * token
    second.sync(long, list(range(4, 61)))
    assert second.step([long]) == [None]
    short.push(7)

    def full(*_: object) -> None:
        raise InferenceError("there is too little memory")

    monkeypatch.setattr(second._runner.store, "reserve", full)
    assert second.step([short]) == [None]
    assert (short.lost, second.used_bytes) == ("memory", 0)
    assert Second(model, model, 0).step([second.admit([5])]) == [None]


def test_what_the_model_cannot_read_is_not_drafted_for(models: Models) -> None:
    model = models(0)
    second = Second(model, model, ROOM)
    assert second.admit([5] * 129).lost == "context"
    line = second.admit([5] * 128)
    told(second, [line])
    line.push(5)
    assert second.step([line]) == [None] and line.lost == "context"
    line = second.admit([5, 6])
    second.sync(line, [5, 6, model.vocabulary])
    assert line.lost == "vocabulary" and second.used_bytes == 0


def test_another_vocabulary_is_refused(models: Models, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, seed=1)
    words = tokenizer()
    words.add_tokens(["<|other|>"])
    words.save_pretrained(folder)
    other = Model.load(folder, "other", "float32", "cpu")
    with pytest.raises(DrafterInputError, match=r"'other' has another vocabulary.*<\|other\|>"):
        Second(other, models(0), ROOM)
