"""The gate in virtual time: who is let in, in which order, who is refused, and how soon."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from statistics import quantiles

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.http.errors import ApiError
from api.http.gate import Gate
from tests.virtual import now, run


def _gate(running: int = 2, waiting: int = 8, slowdown: float = 2.0) -> Gate:
    return Gate(running, waiting, slowdown, clock=now)


async def _work(gate: Gate, key: str, lasts: float, **options: float) -> float:
    """Seconds a request spends at the gate and at work."""
    began = now()
    async with gate.enter(key, **options) as visit:  # type: ignore[arg-type]
        await asyncio.sleep(lasts)
        visit.done = True
    return now() - began


def _idle(gate: Gate) -> bool:
    return (gate.running, gate.waiting) == (0, 0)


def test_no_more_than_allowed_work_and_the_rest_waits_its_turn() -> None:
    async def scene() -> None:
        gate = _gate(running=2, waiting=4)
        jobs = [asyncio.ensure_future(_work(gate, "a", 1.0)) for _ in range(6)]
        await asyncio.sleep(0.5)
        assert (gate.running, gate.waiting) == (2, 4)
        with pytest.raises(ApiError) as refused:
            await _work(gate, "a", 1.0)
        assert refused.value.status_code == 503
        assert refused.value.code == "overloaded"
        assert int((refused.value.headers or {})["Retry-After"]) >= 1
        assert [round(seconds) for seconds in await asyncio.gather(*jobs)] == [1, 1, 2, 2, 3, 3]
        assert _idle(gate)

    run(scene())


def test_keys_take_turns_and_none_fills_the_queue() -> None:
    async def scene() -> None:
        gate, order = _gate(running=1, waiting=4), list[str]()

        async def one(key: str) -> None:
            async with gate.enter(key):
                order.append(key)
                await asyncio.sleep(1)

        greedy = [asyncio.ensure_future(one("greedy")) for _ in range(5)]
        await asyncio.sleep(0.1)
        others = [asyncio.ensure_future(one(key)) for key in ("b", "c")]
        ended = await asyncio.gather(*greedy, *others, return_exceptions=True)
        refused = [error for error in ended if error is not None]
        assert [error.status_code for error in refused if isinstance(error, ApiError)] == [429] * 2
        assert order == ["greedy", "greedy", "b", "c", "greedy"]
        assert _idle(gate)

    run(scene())


def test_a_key_beyond_its_share_is_told_so_and_not_the_others() -> None:
    async def scene() -> None:
        gate = _gate(running=2, waiting=2)
        jobs = [asyncio.ensure_future(_work(gate, key, 1.0)) for key in "baaa"]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await _work(gate, "a", 1.0)
        assert (refused.value.status_code, refused.value.code) == (429, "key_share")
        await asyncio.gather(*jobs)

    run(scene())


def test_who_leaves_the_queue_gives_its_place_up() -> None:
    async def scene() -> None:
        gate = _gate(running=1, waiting=2)
        first, second, third = (asyncio.ensure_future(_work(gate, "a", 1.0)) for _ in range(3))
        await asyncio.sleep(0.5)
        second.cancel()
        await asyncio.sleep(0)
        assert (gate.running, gate.waiting) == (1, 1)
        assert await third == pytest.approx(2.0)
        assert await first == pytest.approx(1.0)
        assert second.cancelled() and _idle(gate)

    run(scene())


def test_a_place_given_to_somebody_who_leaves_that_moment_goes_on() -> None:
    async def scene() -> None:
        gate = _gate(running=1)
        async with gate.enter("a"):
            second, third = (asyncio.ensure_future(_work(gate, "a", 1.0)) for _ in range(2))
            await asyncio.sleep(0)
        second.cancel()  # it was granted the place when the block ended
        assert await third == pytest.approx(1.0)
        assert second.cancelled() and _idle(gate)

    run(scene())


def test_a_request_that_cannot_begin_in_time_is_refused_early() -> None:
    async def scene() -> None:
        gate = _gate(running=1, waiting=9, slowdown=9)
        await _work(gate, "a", 10.0)  # from here on it is known that requests take 10 s
        working = asyncio.ensure_future(_work(gate, "a", 10.0))
        await asyncio.sleep(1)
        with pytest.raises(ApiError, match="before the deadline") as refused:
            await _work(gate, "a", 1.0, seconds=5)
        assert now() == pytest.approx(11.0)
        assert refused.value.status_code == 503
        assert int((refused.value.headers or {})["Retry-After"]) == 9
        await working

    run(scene())


def test_the_deadline_counts_while_it_waits() -> None:
    async def scene() -> None:
        gate = _gate(running=1)
        working = asyncio.ensure_future(_work(gate, "a", 10.0))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="before the deadline"):
            await _work(gate, "b", 1.0, seconds=5)
        assert now() == pytest.approx(5.0)
        await working
        assert _idle(gate)

    run(scene())


def test_a_request_of_several_sequences_takes_as_many_places() -> None:
    async def scene() -> None:
        gate = _gate(running=4, waiting=4)
        jobs = [asyncio.ensure_future(_work(gate, "a", 1.0, size=size)) for size in (3, 3, 1, 99)]
        await asyncio.sleep(0)
        assert gate.running == 3
        assert [round(one) for one in await asyncio.gather(*jobs)] == [1, 2, 2, 3]

    run(scene())


async def _overload(
    gate: Gate, cost: Callable[[int], float], tokens: int, rate: float, seconds: float
) -> tuple[list[float], list[float]]:
    """Open loop of random arrivals: seconds of each accepted and of each refused request.

    A token takes `cost` of the number at work, as a step of a batch does.
    """
    dice = random.Random(7)
    accepted, refused = list[float](), list[float]()

    async def one() -> None:
        began = now()
        try:
            async with gate.enter("a") as visit:
                started = now()
                for _ in range(tokens):
                    await asyncio.sleep(cost(gate.running))
                visit.done, visit.tokens = True, tokens
                visit.pace = (now() - started) / tokens
            accepted.append(now() - began)
        except ApiError:
            refused.append(now() - began)

    jobs = []
    for _ in range(5):  # the light load before, from which the gate knows what is usual
        await one()
    accepted.clear()
    end = now() + seconds
    while now() < end:
        jobs.append(asyncio.ensure_future(one()))
        await asyncio.sleep(dice.expovariate(rate))
    await asyncio.gather(*jobs)
    return accepted, refused


@pytest.mark.parametrize(
    ("running", "strain"), [(1, 0.0), (4, 0.0), (4, 0.1), (4, 0.3), (8, 0.1), (8, 0.2)]
)
def test_overload_leaves_the_accepted_within_twice_their_time(running: int, strain: float) -> None:
    tokens, step, seconds = 10, 0.004, 30

    def cost(at_work: int) -> float:
        return step * (1 + strain * (at_work - 1))

    async def scene() -> tuple[list[float], list[float]]:
        gate = _gate(running, waiting=64)
        await _overload(gate, cost, tokens, 5 * capacity, 2)  # it learns what company costs
        found = await _overload(gate, cost, tokens, 5 * capacity, seconds)
        assert _idle(gate)
        return found

    capacity = running / (tokens * cost(running))
    accepted, refused = run(scene())
    assert quantiles(accepted, n=100)[98] <= 2 * tokens * step
    assert max(refused) == 0
    widths = [at for at in range(1, running + 1) if cost(at) <= 1.3 * step]
    served = seconds * max(at / (tokens * cost(at)) for at in widths)
    assert len(accepted) >= 0.8 * served, "it refuses what could have been served"


def test_after_the_overload_all_places_are_used_again() -> None:
    def cost(at_work: int) -> float:
        return 0.02 * (1 + 0.5 * (at_work - 1))

    async def scene() -> None:
        gate = _gate(running=8, waiting=64)
        await _overload(gate, cost, 20, rate=50, seconds=20)
        assert gate.width < 8
        await _overload(gate, cost, 20, rate=1, seconds=60)
        assert gate.width == 8

    run(scene())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(1, 5),
            st.floats(0, 3),
            st.floats(0.01, 2),
            st.none() | st.floats(0.01, 4),
            st.none() | st.floats(0, 3),
        ),
        max_size=25,
    ),
)
def test_whatever_comes_and_goes_nothing_is_left_and_no_bound_broken(
    running: int,
    waiting: int,
    visits: list[tuple[str, int, float, float, float | None, float | None]],
) -> None:
    async def scene() -> None:
        gate, outcomes = _gate(running, waiting), Counter[str]()

        async def one(
            key: str,
            size: int,
            at: float,
            lasts: float,
            seconds: float | None,
            leaves: float | None,
        ) -> None:
            await asyncio.sleep(at)
            try:
                async with asyncio.timeout(leaves), gate.enter(key, size=size, seconds=seconds):
                    assert gate.running <= running
                    assert gate.waiting <= waiting
                    await asyncio.sleep(lasts)
                    outcomes["done"] += 1
            except TimeoutError:
                outcomes["left"] += 1
            except ApiError as error:
                assert error.status_code in (429, 503)
                outcomes["refused"] += 1

        await asyncio.gather(*(one(*visit) for visit in visits))
        assert outcomes.total() == len(visits)
        assert gate.refused == outcomes["refused"]
        assert _idle(gate)
        assert await _work(gate, "a", 1.0) == pytest.approx(1.0)

    run(scene())
