"""The data store for examples and tests: slow on demand, and it counts."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from memo import OptionError, cache_aside
from memo.testing import ManualClock, MockDataStore


@pytest.fixture
def slept(monkeypatch):
    """What was slept for, in the place of sleeping."""
    found = []

    async def asleep(seconds):
        found.append(("async", seconds))

    monkeypatch.setattr(time, "sleep", lambda seconds: found.append(("sync", seconds)))
    monkeypatch.setattr(asyncio, "sleep", asleep)
    return found


def test_it_is_a_dict_that_counts(slept):
    source = MockDataStore(data={"a": 1})
    assert source.get("a") == 1
    assert source.get("b") is None
    assert source.update("b", 2) is None
    assert source.get("b") == 2
    assert source.delete("b") is True
    assert source.delete("b") is False
    assert source.data == {"a": 1}
    assert (source.reads, source.updates, source.deletes, source.calls) == (3, 1, 2, 6)
    assert slept == [("sync", 0.1)] * 6


async def test_it_is_a_dict_that_counts_async(slept):
    source = MockDataStore(data={"a": 1}, latency_ms=250)
    assert await source.aget("a") == 1
    assert await source.aget("b") is None
    assert await source.aupdate("b", 2) is None
    assert await source.aget("b") == 2
    assert await source.adelete("b") is True
    assert await source.adelete("b") is False
    assert source.data == {"a": 1}
    assert (source.reads, source.updates, source.deletes, source.calls) == (3, 1, 2, 6)
    assert slept == [("async", 0.25)] * 6


def test_what_was_given_is_copied():
    given = {"a": 1}
    MockDataStore(latency_ms=0, data=given).update("a", 2)
    assert given == {"a": 1}


def test_the_latency_may_pass_on_a_clock(slept):
    clock = ManualClock()
    source = MockDataStore(sleep=clock.advance)
    source.get("a")
    source.latency_ms = 400
    source.update("a", 1)
    asyncio.run(source.aget("a"))
    assert clock.now == pytest.approx(0.9)
    assert slept == []


def test_the_latency_may_be_awaited():
    found = []

    async def sleep(seconds):
        found.append(seconds)

    asyncio.run(MockDataStore(sleep=sleep).aget("a"))
    assert found == [0.1]


def test_a_call_that_is_under_way_is_counted_and_sees_what_is_changed_meanwhile():
    source = MockDataStore(sleep=lambda seconds: source.data.update(a=source.reads))
    assert source.get("a") == 1


def test_counts_are_exact_under_threads():
    source = MockDataStore(latency_ms=0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(source.get, map(str, range(2_000))))
    assert source.reads == 2_000


def test_it_is_what_a_cached_function_reads():
    source = MockDataStore(latency_ms=0, data={"a": 1})
    get = cache_aside(source.get)
    assert [get("a"), get("a")] == [1, 1]
    assert source.reads == 1
    source.update("a", 2)
    assert get("a") == 1
    get.invalidate("a")
    assert get("a") == 2


@pytest.mark.parametrize("latency", [-1, float("nan"), float("inf"), True, "100", None])
def test_a_latency_that_is_none_is_refused(latency):
    with pytest.raises(OptionError, match="latency_ms="):
        MockDataStore(latency_ms=latency)


def test_a_sleep_that_is_no_function_is_refused():
    with pytest.raises(OptionError, match="sleep=5"):
        MockDataStore(sleep=5)
