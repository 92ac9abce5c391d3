"""The rows of the fault list that concern a store that fails, as far as a store in memory can show them."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from memo import MISSING, MemoryStore, StoreError, cache_aside
from memo.testing import FaultyStore, MockDataStore

PATIENCE = 30.0
"""Seconds after which something that should have happened counts as a hang."""


@pytest.fixture
def faulty(clock):
    return FaultyStore(MemoryStore(clock=clock, cleanup_interval=None), clock=clock)


def until(is_so):
    """Wait for a state that another thread brings about; what runs into the limit fails where it is asserted."""
    for _ in range(int(PATIENCE * 1_000)):
        if is_so():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it did not come about")


def test_a_store_that_is_down_at_the_start_is_used_as_soon_as_it_is_back(faulty):
    """To decorate asks the store nothing, and no call fails."""
    faulty.fail(error=ConnectionRefusedError)
    f = cache_aside(store=faulty, ttl=None)(lambda x: x)
    assert faulty.calls == {}
    assert [f(x % 3) for x in range(30)] == [x % 3 for x in range(30)]
    assert f.stats().loads == 30
    faulty.heal()
    assert [f(x % 3) for x in range(30)] == [x % 3 for x in range(30)]
    assert f.stats().loads == 33


async def test_a_store_that_is_down_at_the_start_is_used_as_soon_as_it_is_back_async(faulty):
    async def load(x):
        return x

    faulty.fail(error=ConnectionRefusedError)
    f = cache_aside(store=faulty, ttl=None)(load)
    assert [await f(x % 3) for x in range(30)] == [x % 3 for x in range(30)]
    assert f.stats().loads == 30
    faulty.heal()
    assert [await f(x % 3) for x in range(30)] == [x % 3 for x in range(30)]
    assert f.stats().loads == 33


def test_a_store_that_restarts_empty_between_lease_and_fill_refuses_the_fill(faulty):
    """What was invalidated in between is not known to it any more, so it must not take what it knows nothing of."""
    versions = [1]
    f = cache_aside(store=faulty, ttl=None)(lambda x: versions[-1])

    def restart():
        versions.append(2)  # and the invalidation that belongs to it reached nobody
        faulty.inner.clear()

    faulty.delay("fill", restart, times=1)
    assert f(7) == 1
    assert f.stats().refused_fills == 1
    assert f(7) == 2


def test_a_store_outage_does_not_flood_the_origin(faulty):
    """Single flight is in the process: it holds without a store."""
    arrived, gate = threading.Event(), threading.Event()

    def sleep(_):
        arrived.set()
        gate.wait(PATIENCE)

    source = MockDataStore(data={"a": 1}, sleep=sleep)
    f = cache_aside(store=faulty, ttl=None)(source.get)
    faulty.fail(error=TimeoutError)
    with ThreadPoolExecutor(32) as pool:
        calls = [pool.submit(f, "a") for _ in range(32)]
        assert arrived.wait(PATIENCE)
        until(lambda: f.stats().waits == 31)
        gate.set()
        assert [call.result(PATIENCE) for call in calls] == [1] * 32
    assert source.reads == 1


async def test_a_store_outage_does_not_flood_the_origin_async(faulty):
    gate = asyncio.Event()
    source = MockDataStore(data={"a": 1}, sleep=lambda _: gate.wait())
    f = cache_aside(store=faulty, ttl=None)(source.aget)
    faulty.fail(error=TimeoutError)
    calls = [asyncio.create_task(f("a")) for _ in range(32)]
    while f.stats().waits < 31:
        await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == [1] * 32
    assert source.reads == 1


def test_a_store_that_is_full_is_read_and_invalidated_and_takes_nothing_new(faulty):
    f = cache_aside(store=faulty, ttl=None, tags=("t",))(lambda x: x)
    f(1)
    f(2)
    faulty.fail("fill", "put", "set", error=MemoryError)
    assert [f(1), f(2), f(3), f(3)] == [1, 2, 3, 3]
    assert f.stats().errors == {"fill": 2}
    assert f.invalidate(1) is True
    assert f.peek(1) is MISSING
    faulty.invalidate_tags("t")
    assert f.peek(2) is MISSING


DECODING = [
    pickle.UnpicklingError,
    ValueError,
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "damaged"),
    OverflowError,
    EOFError,
    TypeError,
    MemoryError,
    RecursionError,
    AttributeError,
    IndexError,
    ModuleNotFoundError,
]


@pytest.mark.parametrize("error", DECODING, ids=lambda error: getattr(error, "__name__", type(error).__name__))
def test_a_payload_that_cannot_be_decoded_is_a_miss_whatever_the_decoder_raises(faulty, error):
    def decode(value):
        raise error

    f = cache_aside(store=faulty, ttl=None)(lambda x: x)
    f(1)
    faulty.corrupt("read", "take", change=decode)
    assert [f(1), f(1)] == [1, 1]
    assert f.stats().errors == {"read": 2, "take": 2}
    faulty.heal()
    assert f(1) == 1
    assert f.stats().loads == 3


def test_a_lost_reply_to_a_fill_leaves_the_right_value_or_none(faulty):
    """The store has done it and the caller does not know: it gives back the lease, which the fill has used up."""
    loads = []
    f = cache_aside(store=faulty, ttl=None)(lambda x: loads.append(x) or len(loads))
    faulty.fail("fill", error=TimeoutError, after=True, times=1)
    assert f(7) == 1
    assert f.stats().errors == {"fill": 1}
    assert f(7) in (1, 2)
    assert f.invalidate(7) is True
    assert f(7) == len(loads)


def test_a_lost_reply_to_an_invalidation_is_raised_though_it_was_done(faulty):
    f = cache_aside(store=faulty, ttl=None)(lambda x: x)
    f(7)
    faulty.fail("remove", error=TimeoutError, after=True, times=1)
    with pytest.raises(TimeoutError):
        f.invalidate(7)
    assert f.peek(7) is MISSING


def test_a_store_that_comes_and_goes_lets_no_error_escape_and_nothing_old_be_read(faulty):
    """What is written and then invalidated without an error is never read again, however the store fails around it."""
    versions = dict.fromkeys(range(4), 0)
    f = cache_aside(store=faulty, ttl=None)(lambda x: versions[x])
    stop, wrong, calls = threading.Event(), [], []
    announced = dict(versions)  # what has been invalidated successfully

    def read(seed):
        number = seed
        while not stop.is_set():
            number = (number * 1_103_515_245 + 12_345) % 2**31
            key = number % 4
            least = announced[key]
            try:
                found = f(key)
            except BaseException as error:
                wrong.append(error)
                return
            calls.append(key)
            if found < least:
                wrong.append((key, found, least))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for reader in readers:
        reader.start()
    reported = 0
    for turn in range(300):
        key = turn % 4
        versions[key] += 1
        if turn % 3 == 0:
            faulty.fail("read", "take", "fill", "release", "remove", error=OSError, times=1 + turn % 7)
        while True:
            try:
                f.invalidate(key)
                break
            except OSError:
                reported += 1
        announced[key] = versions[key]
    stop.set()
    for reader in readers:
        reader.join(PATIENCE)
    assert wrong == []
    faulty.heal()
    assert [f(key) for key in versions] == list(versions.values())


def test_helpers_that_only_look_report_a_store_that_is_down(faulty):
    """None and MISSING would say that nothing is there."""
    f = cache_aside(store=faulty, ttl=None)(lambda x: x)
    faulty.fail("peek", "left")
    with pytest.raises(StoreError):
        f.peek(7)
    with pytest.raises(StoreError):
        f.ttl_left(7)
