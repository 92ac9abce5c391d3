"""What is counted, and what is logged: one hit or one miss for each call, one line for each kind of failure."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading

import pytest

from memo import MISSING, drivers
from memo.stats import FULL, Counter, FunctionCounters, FunctionStats, StoreStats, functions


def counts(f):
    stats = f.stats()
    return stats.hits, stats.misses, stats.loads


def test_every_call_is_a_hit_or_a_miss(cached):
    f = cached(lambda x: x)
    f(1), f(1), f(2)
    assert counts(f) == (1, 2, 2)
    assert f.stats().hit_ratio == pytest.approx(1 / 3)


async def test_every_call_is_a_hit_or_a_miss_async(cached):
    async def load(x):
        return x

    f = cached(load)
    await f(1), await f(1), await f(2)
    assert counts(f) == (1, 2, 2)


def test_a_key_that_the_generated_code_cannot_look_up_is_counted_alike(cached):
    f = cached(lambda x: x)
    f([1]), f([1]), f([2])
    assert counts(f) == (1, 2, 2)


async def test_a_key_that_the_generated_code_cannot_look_up_is_counted_alike_async(cached):
    async def load(x):
        return x

    f = cached(load)
    await f([1]), await f([1]), await f([2])
    assert counts(f) == (1, 2, 2)


def test_helpers_count_no_lookup(cached):
    f = cached(lambda x: x)
    f.peek(1), f.set("v", 1), f.peek(1), f.ttl_left(1), f.key_for(1), f.invalidate(1), f.invalidate_all(), f.stats()
    assert counts(f) == (0, 0, 0)
    f.refresh(1)
    assert counts(f) == (0, 0, 1)


async def test_helpers_count_no_lookup_async(cached):
    async def load(x):
        return x

    f = cached(load)
    await f.peek(1), await f.set("v", 1), await f.peek(1), await f.ttl_left(1), f.key_for(1)
    await f.invalidate(1), await f.invalidate_all()
    assert counts(f) == (0, 0, 0)
    await f.refresh(1)
    assert counts(f) == (0, 0, 1)


def test_a_load_that_raises_is_a_miss_and_no_load(cached):
    f = cached(lambda x: 1 / x)
    with pytest.raises(ZeroDivisionError):
        f(0)
    assert counts(f) == (0, 1, 0)
    assert f.stats().errors == {}


def test_a_fill_that_an_invalidation_forestalled_is_counted_as_refused(cached):
    f = cached(lambda x: f.invalidate(x))
    assert f(1) is False
    stats = f.stats()
    assert (stats.refused_fills, stats.uncached, stats.loads) == (1, 0, 1)
    assert f.peek(1) is MISSING


async def test_a_fill_that_an_invalidation_forestalled_is_counted_as_refused_async(cached):
    async def load(x):
        return await f.invalidate(x)

    f = cached(load)
    assert await f(1) is False
    assert f.stats().refused_fills == 1


def test_a_result_that_is_not_kept_is_counted(cached, look):
    f = cached(lambda x: None)
    assert f(1) is None
    assert f(1) is None
    stats = f.stats()
    assert (stats.uncached, stats.refused_fills, stats.hits, stats.misses) == (2, 0, 0, 2)
    look(f).clean()


def test_time_saved_is_the_hits_at_the_mean_duration_of_a_load():
    stats = FunctionStats(hits=6, misses=2, loads=2, load_seconds=5.0, waits=0, refused_fills=0)
    assert stats.time_saved == 15.0
    assert stats.hit_ratio == 0.75
    assert stats.errors == {}


def test_figures_of_nothing_are_zero():
    stats = FunctionCounters("f").snapshot()
    assert (stats.hit_ratio, stats.time_saved) == (0.0, 0.0)
    store = StoreStats(hits=0, misses=0, sets=0, deletes=0, evictions=0, expirations=0, size=0, max_size=None)
    assert store.hit_ratio == 0.0
    assert StoreStats(3, 1, 0, 0, 0, 0, 0, None).hit_ratio == 0.75


def test_load_seconds_are_measured(cached, monkeypatch):

    readings = iter([10.0, 12.5, 20.0, 20.25])
    f = cached(lambda x: x)
    f.invalidate(1)
    monkeypatch.setattr(drivers.time, "perf_counter", lambda: next(readings))
    f(1), f(2)
    assert f.stats().load_seconds == 2.75


def test_a_counter_is_exact_under_threads_and_reading_does_not_advance_it():
    counter = Counter()

    def tick():
        for _ in range(5_000):
            counter.tick()

    threads = [threading.Thread(target=tick) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [counter.value, counter.value] == [40_000, 40_000]
    assert Counter(7).value == 7


def test_durations_are_added_up_in_batches_and_lose_nothing(cached):
    f = cached(lambda x: x)
    counters = f._self_memoized.counters
    for x in range(1_203):
        f(x)
        assert len(counters.durations) <= FULL
    stats = f.stats()
    assert stats.loads == 1_203
    assert counters.durations == []
    counters.durations[:] = [0.5, 0.25]
    later = f.stats()
    assert (later.loads, later.load_seconds) == (1_205, stats.load_seconds + 0.75)
    assert f.stats() == later


def test_a_snapshot_does_not_change_afterwards():
    counters = FunctionCounters("f")
    counters.error("read", ValueError(), "advice")
    before = counters.snapshot()
    counters.error("read", ValueError(), "advice")
    assert before.errors == {"read": 1}
    assert counters.snapshot().errors == {"read": 2}


SECRET = "hunter2"


def fail(value):
    raise ValueError(f"about {value}")


def test_each_kind_of_failure_is_logged_once_without_arguments_or_values(cached, caplog):
    caplog.set_level(logging.DEBUG)
    f = cached(lambda x: x, ttl=fail)
    for turn in range(3):
        assert f(f"{SECRET}{turn}") == f"{SECRET}{turn}"
    assert f.stats().errors == {"policy": 3}
    assert f.stats().uncached == 3
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("memo", "WARNING")
    assert "policy" in record.getMessage()
    assert "ValueError" in record.getMessage()
    assert f._self_memoized.name in record.getMessage()
    assert SECRET not in record.getMessage()
    assert record.exc_info is None


def test_other_functions_failures_are_logged_for_themselves(cached, caplog):
    one, two = cached(lambda x: x, ttl=fail), cached(lambda x: x, cache_if=fail)
    one(1), two(1), one(1), two(1)
    assert len(caplog.records) == 2


class Raising(logging.Handler):
    def emit(self, record):
        raise RuntimeError("the handler fails")


@pytest.fixture
def raising_handler():
    handler = Raising()
    logger = logging.getLogger("memo")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def test_a_logging_handler_that_raises_does_not_fail_the_call(cached, raising_handler, look):
    f = cached(lambda x: x, ttl=fail)
    assert f(1) == 1
    assert f(1) == 1
    assert f.stats().errors == {"policy": 2, "logging": 1}
    look(f).clean()


async def test_a_logging_handler_that_raises_does_not_fail_the_call_async(cached, raising_handler, look):
    async def load(x):
        return x

    f = cached(load, ttl=fail)
    assert await asyncio.gather(f(1), f(1)) == [1, 1]
    assert f.stats().errors == {"policy": 1, "logging": 1}
    look(f).clean()


def test_a_handler_that_fails_twice_is_counted_twice(raising_handler):
    counters = FunctionCounters("f")
    for kind in ("read", "fill"):
        counters.error(kind, ValueError(), "advice")
    assert counters.snapshot().errors == {"read": 1, "fill": 1, "logging": 2}


def test_the_store_counts_its_functions_calls_as_its_own(cached, store):
    f = cached(lambda x: x)
    f(1), f(1), f.peek(1), store.get("plain")
    assert (store.stats().hits, store.stats().misses) == (1, 2)


def test_all_counters_that_are_alive_are_listed_in_order(cached):
    gc.collect()
    before = functions()
    f, g = cached(lambda x: x), cached(lambda x: x)
    mine = [f._self_memoized.counters, g._self_memoized.counters]
    assert functions() == [*before, *mine]
    del f, mine
    gc.collect()
    assert functions() == [*before, g._self_memoized.counters]
