"""The key/value store: growth keeps entries, ranges read back what was written."""

from __future__ import annotations

import pytest
import torch

from inference.errors import InferenceError
from inference.native.store import Store


def filled(tokens: int) -> tuple[Store, torch.Tensor]:
    store = Store()
    store.reserve(tokens)
    rows = torch.arange(tokens * 6, dtype=torch.float32).view(tokens, 2, 3)
    for layer in (0, 1):
        store.write(layer, torch.arange(tokens), rows + layer, -rows - layer)
    return store, rows


def test_entries_survive_growth_and_copies() -> None:
    store, rows = filled(8)
    store.reserve(9)
    store.copy(2, 8, 4)
    for layer in (0, 1):
        keys, values = store.read(layer, [(6, 8), (8, 12), (0, 1)])
        wanted = torch.cat([rows[6:8], rows[2:6], rows[:1]]) + layer
        assert torch.equal(keys, wanted) and torch.equal(values, -wanted)
    assert store.token_bytes == 2 * 2 * 6 * 4


def test_one_range_is_a_view() -> None:
    store, _ = filled(8)
    keys, _ = store.read(0, [(2, 5)])
    assert keys.data_ptr() == store.keys[0][2].data_ptr()


def test_too_little_memory_is_a_clear_error_and_harms_nothing() -> None:
    store, rows = filled(8)
    with pytest.raises(InferenceError, match=r"too little memory .* lower kv_cache_bytes"):
        store.reserve(2**52)
    store.reserve(20)
    assert torch.equal(store.read(1, [(0, 8)])[0], rows + 1)
