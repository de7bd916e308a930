"""Low-rank products over the rows of a step equal dense weights, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.adapters.batch import LoraBatch, Stacks
from inference.adapters.lora import Adapter
from inference.adapters.shape import Shape

WIDTH, SIZES = 12, {"q_proj": (8, 12), "k_proj": (4, 12), "v_proj": (4, 12), "o_proj": (12, 12)}
QKV = {"q_proj": slice(0, 8), "k_proj": slice(8, 12), "v_proj": slice(12, 16)}
SINGLE = {"o_proj": slice(None)}
SHAPE = Shape(
    2,
    SIZES,
    {name: f"model.layers.{{layer}}.self_attn.{name}" for name in SIZES},
    torch.float32,
    torch.device("cpu"),
)


def adapter(
    seed: int, ranks: dict[tuple[int, str], int], shape: Shape = SHAPE, grad: bool = False
) -> Adapter:
    """Random factors of the given ranks."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for (layer, module), rank in ranks.items():
        out, width = shape.sizes[module]
        tensors[layer, module] = (
            torch.randn(rank, width, generator=draw).requires_grad_(grad),
            torch.randn(out, rank, generator=draw).requires_grad_(grad),
        )
    return Adapter.from_tensors(f"a{seed}", tensors, 0.5, shape)


def dense(adapter: Adapter, layer: int, parts: dict[str, slice], x: torch.Tensor) -> torch.Tensor:
    """x (B A)^T of all parts side by side, from the dense product."""
    pieces = []
    for module in parts:
        pair = adapter.pairs.get((layer, module))
        out, width = SIZES[module]
        delta = torch.zeros(out, width) if pair is None else pair.b @ pair.a
        pieces.append(x @ delta.T)
    return torch.cat(pieces, 1)


sites = st.dictionaries(
    st.tuples(st.integers(0, 1), st.sampled_from(sorted(SIZES))),
    st.sampled_from([1, 2, 3, 30]),
    min_size=1,
)
carried = st.lists(st.integers(0, 2), max_size=3).map(tuple)


@settings(deadline=None, max_examples=60)
@given(
    ranks=st.lists(sites, min_size=3, max_size=3),
    runs=st.lists(st.tuples(st.integers(0, 3), carried), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    layer=st.integers(0, 1),
    parts=st.sampled_from([QKV, SINGLE]),
)
def test_each_row_gets_what_its_adapters_give_alone(
    ranks: Any, runs: Any, order: Any, layer: int, parts: dict[str, slice]
) -> None:
    adapters = [adapter(seed, one) for seed, one in enumerate(ranks)]
    spans, start = [], 0
    for length, numbers in runs:
        spans.append((start, start + length, tuple(adapters[n] for n in numbers)))
        start += length
    x = torch.randn(start, WIDTH, generator=torch.Generator().manual_seed(9))
    y = torch.randn(start, sum(SIZES[m][0] for m in parts))
    wanted = y.clone()
    for first, end, theirs in spans:
        for one in theirs:
            wanted[first:end] += dense(one, layer, parts, x[first:end])
    before = y.clone()
    order.shuffle(spans)
    batch = LoraBatch.build(spans)
    if batch is None:
        assert all(not theirs or first == end for first, end, theirs in spans)
        return
    batch.add(layer, parts, x, y)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=2e-4)
    for first, end, theirs in spans:
        if not theirs:
            assert torch.equal(y[first:end], before[first:end])


def test_nothing_is_built_where_no_row_carries_an_adapter() -> None:
    one = adapter(0, {(0, "q_proj"): 2})
    assert LoraBatch.build([(0, 5, ()), (5, 5, (one,))]) is None
    assert LoraBatch.build([]) is None


def test_overlapping_spans_are_noticed() -> None:
    one = adapter(0, {(0, "q_proj"): 2})
    with pytest.raises(ValueError, match="row 1 "):
        LoraBatch.build([(0, 2, (one,)), (1, 3, (one,))])


def test_what_overflows_in_one_adapter_stays_in_its_rows() -> None:
    huge = Adapter.from_tensors(
        "huge", {(0, "o_proj"): (torch.full((1, WIDTH), 3e38), torch.ones(WIDTH, 1))}, 1.0, SHAPE
    )
    plain = adapter(0, {(0, "o_proj"): 2})
    x, y = torch.full((2, WIDTH), 9.0), torch.zeros(2, WIDTH)
    batch = LoraBatch.build([(0, 1, (huge,)), (1, 2, (plain,))])
    assert batch is not None
    batch.add(0, SINGLE, x, y)
    assert not torch.isfinite(y[0]).any()
    torch.testing.assert_close(y[1:], dense(plain, 0, SINGLE, x[1:]))


def test_stacks_are_kept_for_the_same_set_only() -> None:
    first, second = adapter(0, {(0, "q_proj"): 2}), adapter(1, {(0, "q_proj"): 2})
    stacks, x = Stacks(sets=1), torch.randn(2, WIDTH)

    def added(*theirs: Adapter) -> torch.Tensor:
        y = torch.zeros(2, 16)
        batch = LoraBatch.build([(0, 2, theirs)], stacks)
        assert batch is not None
        batch.add(0, QKV, x, y)
        return y

    with torch.inference_mode():
        alone = added(first)
    kept = stacks.of([first])
    assert list(kept) == [(0, tuple(QKV))]
    assert stacks.of([adapter(0, {(0, "q_proj"): 2})]) is kept  # by content
    assert torch.equal(added(first), alone)
    torch.testing.assert_close(added(second), dense(second, 0, QKV, x))
    assert stacks.of([first]) == {}  # made room
    torch.testing.assert_close(
        added(second, first), dense(first, 0, QKV, x) + dense(second, 0, QKV, x)
    )


def test_a_stack_made_while_inferring_serves_gradients_of_the_input() -> None:
    one, stacks = adapter(0, {(0, "q_proj"): 2, (0, "v_proj"): 1}), Stacks()
    x = torch.randn(3, WIDTH, requires_grad=True)
    for mode in (True, False):
        with torch.inference_mode(mode):
            y = torch.zeros(3, 16)
            batch = LoraBatch.build([(0, 1, (one,)), (2, 3, (one,))], stacks)
            assert batch is not None
            batch.add(0, QKV, x, y)
    y.sum().backward()
    wanted = torch.autograd.grad(dense(one, 0, QKV, x).sum(), x)[0]
    assert x.grad is not None
    torch.testing.assert_close(x.grad[[0, 2]], wanted[[0, 2]])
    assert not x.grad[1].any()


@pytest.mark.parametrize("rows", [[(0, 4)], [(0, 1), (2, 4)]])
def test_gradients_reach_the_factors(rows: list[tuple[int, int]]) -> None:
    """Against autograd through the dense product, and in each of two steps."""
    ranks = {(0, "q_proj"): 2, (0, "v_proj"): 3}
    draw = torch.Generator().manual_seed(1)
    leaves = {
        site: (
            torch.randn(rank, WIDTH, generator=draw, requires_grad=True),
            torch.randn(SIZES[site[1]][0], rank, generator=draw, requires_grad=True),
        )
        for site, rank in ranks.items()
    }
    flat = [factor for pair in leaves.values() for factor in pair]
    weight = torch.randn(16, WIDTH, generator=draw)
    x = torch.randn(4, WIDTH, generator=draw)
    stacks = Stacks()
    for _ in range(2):
        one = Adapter.from_tensors("a", leaves, 2.0, SHAPE)
        y = x @ weight.T
        batch = LoraBatch.build([(a, b, (one,)) for a, b in rows], stacks)
        assert batch is not None
        batch.add(0, QKV, x, y)
        ours = torch.autograd.grad(y.square().sum(), flat)
        one = Adapter.from_tensors("a", leaves, 2.0, SHAPE)
        wanted = x @ weight.T
        chosen = torch.cat([torch.arange(a, b) for a, b in rows])
        wanted = wanted.index_add(0, chosen, dense(one, 0, QKV, x[chosen]))
        theirs = torch.autograd.grad(wanted.square().sum(), flat)
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)


def test_columns_without_a_pair_and_other_layers_stay() -> None:
    one = adapter(0, {(1, "k_proj"): 2})
    batch = LoraBatch.build([(0, 3, (one,))])
    assert batch is not None
    x, y = torch.randn(3, WIDTH), torch.randn(3, 16)
    before = y.clone()
    batch.add(0, QKV, x, y)
    assert torch.equal(y, before)
    batch.add(1, QKV, x, y)
    assert torch.equal(y[:, :8], before[:, :8]) and torch.equal(y[:, 12:], before[:, 12:])
    assert not torch.equal(y[:, 8:12], before[:, 8:12])
