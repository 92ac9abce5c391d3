"""`FaultyStore` around a Redis store: whoever tests an outage meets what the real one does, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from memo import RedisStore, cache_aside
from memo.testing import FaultyStore


@pytest.fixture
def faulty(redis_server):
    inner = RedisStore(redis_server.url, timeout=20)
    yield FaultyStore(inner)
    inner.close()


@pytest.fixture(params=[False, True], ids=["blocking", "awaited"])
def function(request, faulty):
    """A function on the store, the number of its loads, and what is called in both cases."""

    def make(**options: Any) -> Any:
        calls: list[int] = []

        def load(x: int) -> int:
            calls.append(x)
            return x

        async def aload(x: int) -> int:
            return load(x)

        cached = cache_aside(store=faulty, key="f:{x}", ttl=100, **options)(aload if request.param else load)
        return (lambda x: asyncio.run(cached(x)) if request.param else cached(x)), calls

    return make


@pytest.mark.parametrize("single_flight", ["process", "fleet", None])
def test_without_a_fault_it_is_the_store_within(function, single_flight):
    f, calls = function(single_flight=single_flight)
    assert [f(1), f(1), f(2), f(1)] == [1, 1, 2, 1]
    assert calls == [1, 2]


@pytest.mark.parametrize("single_flight", ["process", "fleet"])
@pytest.mark.parametrize("operation", ["read", "fill"])
def test_what_fails_once_is_loaded_once_more_and_then_stored(function, faulty, single_flight, operation):
    f, calls = function(single_flight=single_flight)
    faulty.fail(operation, times=1)
    assert [f(1), f(1), f(1)] == [1, 1, 1]
    assert calls == [1, 1]


def test_a_lease_that_a_look_has_taken_stays_taken_where_values_are_corrupted(function, faulty):
    """Else a fleet would wait for a load that is its own."""
    f, calls = function(single_flight="fleet")
    faulty.corrupt("read", change=lambda value: value)
    assert [f(1), f(1)] == [1, 1]
    assert calls == [1]
